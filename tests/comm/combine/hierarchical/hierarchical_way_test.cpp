#include "comm/combine/hierarchical/hierarchical_way.hpp"

#include <gtest/gtest.h>

#include <array>
#include <chrono>

#include "kvmesh/error.hpp"
#include "tests/comm/combine/combine_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr std::array kLayouts{HostLayout{2, 2}, HostLayout{2, 3}, HostLayout{3, 2}};

template <class Body>
void on_hosts(const HostLayout& hosts, const Body& body) {
  run_loopback(hosts.hosts * hosts.per_host, [&](Communicator& comm) {
    HierarchicalWay way(comm.rank(), hosts, Device{}, stages_over_hosts(comm, hosts));
    body(comm, way);
  });
}

/// A random case that the way takes.
CombineCase random_case_for(std::mt19937_64& random, int ranks) {
  while (true) {
    CombineCase test = random_case(random, ranks);
    const bool is_shared_evenly = test.scatter == Scatter::kHeads && test.heads % ranks == 0;
    if (test.scatter == Scatter::kAll || is_shared_evenly) return test;
  }
}

TEST(HierarchicalWay, MatchesFloat64) {
  for (const HostLayout& hosts : kLayouts) {
    on_hosts(hosts, [](Communicator& comm, HierarchicalWay& way) {
      std::mt19937_64 random(comm.size());
      for (int i = 0; i < 60; ++i) {
        CombineCase test = random_case_for(random, comm.size());
        SCOPED_TRACE("case " + std::to_string(i) + ": " + test.describe());
        const int me = comm.rank().value;
        const Result result = run_case(way, test, me, CombineStrategy::kAllToAll);
        expect_close(result, expected_of(test, me), test.dim);
        const Result again =
            run_case(way, test, me, CombineStrategy::kReduceScatter, Dtype::kFloat32, i % 3);
        EXPECT_TRUE(same_bits(again, result));
      }
    });
  }
}

TEST(HierarchicalWay, KnowsHeadsOfAllRanksAndRowsOfNan) {
  for (const HostLayout& hosts : kLayouts) {
    on_hosts(hosts, [](Communicator& comm, HierarchicalWay& way) {
      const int me = comm.rank().value;
      for (const std::int64_t gap : {0, 2}) {
        CombineCase test = full_case(comm.size(), 7, 2 * comm.size(), 16, Scatter::kHeads);
        for (HeldPartial& partial : test.partials) partial = with_gap(partial, gap);
        expect_close(run_case(way, test, me, CombineStrategy::kAuto), expected_of(test, me), 16);
      }
      CombineCase unusual = unusual_case(comm.size(), Scatter::kAll);
      expect_close(run_case(way, unusual, me, CombineStrategy::kAuto), expected_of(unusual, me),
                   unusual.dim);
    });
  }
}

/// Bytes from host to host of a combine in which every rank takes part in every row.
std::uint64_t bytes_between_hosts(const HostLayout& hosts, Scatter scatter) {
  std::array<std::uint64_t, 8> sent{};
  run_loopback(hosts.hosts * hosts.per_host, [&](Communicator& comm) {
    HierarchyStages stages = stages_over_hosts(comm, hosts);
    const Subset& across = *stages.across_comm;
    const int me = comm.rank().value;
    HierarchicalWay way(comm.rank(), hosts, Device{}, std::move(stages));
    CombineCase test = full_case(comm.size(), 24, 2 * comm.size(), 64, scatter);
    run_case(way, test, me, CombineStrategy::kAuto);
    sent[static_cast<std::size_t>(me)] = across.sent_bytes();
  });
  std::uint64_t sum = 0;
  for (const std::uint64_t bytes : sent) sum += bytes;
  return sum;
}

TEST(HierarchicalWay, SendsEachRowOncePerHost) {
  for (const HostLayout& hosts : kLayouts) {
    const int ranks = hosts.hosts * hosts.per_host;
    constexpr std::uint64_t kTokens = 24, kRowBytes = (64 + 1) * sizeof(float);
    const std::uint64_t rows = kTokens * 2 * static_cast<std::uint64_t>(ranks);
    const auto others = static_cast<std::uint64_t>(hosts.hosts - 1);
    // Without hosts each rank sends rows to each rank of the other hosts: per_host times as many.
    const std::uint64_t to_owners = others * rows * kRowBytes;
    const std::uint64_t slack = to_owners / 20;  // digests
    EXPECT_NEAR(static_cast<double>(bytes_between_hosts(hosts, Scatter::kHeads)),
                static_cast<double>(to_owners), static_cast<double>(slack));
    EXPECT_LE(bytes_between_hosts(hosts, Scatter::kAll),
              others * static_cast<std::uint64_t>(hosts.hosts) * rows * kRowBytes + slack);
  }
}

TEST(HierarchicalWay, NamesTheRanksOfTheWholeGroup) {
  on_hosts({2, 2}, [](Communicator& comm, HierarchicalWay& way) {
    const int me = comm.rank().value;
    CombineCase test = full_case(4, 4, 8, 16, Scatter::kHeads);
    PlanDigest digest;
    digest.add(PlanGroup::kLengths, me == 3 ? 1 : 0);
    way.identify(digest);
    comm.set_deadline(std::chrono::milliseconds(me == 2 ? 20000 : 300));
    try {
      run_case(way, test, me, CombineStrategy::kAuto);
      FAIL() << "rank 3 had another plan";
    } catch (const DigestMismatch& error) {
      const std::string_view text = error.what();
      EXPECT_NE(text.find('3'), std::string_view::npos) << text;
    } catch (const Error& error) {  // of ranks whose peers have given up
      EXPECT_NE(me, 2) << "its neighbour on the host had another plan: " << error.what();
    }
  });
}

TEST(HierarchicalWay, RefusesWhatItCannotDivide) {
  on_hosts({2, 2}, [](Communicator&, HierarchicalWay& way) {
    EXPECT_THROW(way.plan({4, 6, 16}, {.scatter = Scatter::kHeads}, {}), InvalidArgument);
    EXPECT_THROW(way.plan({4, 8, 16}, {.scatter = Scatter::kTokens}, {}), InvalidArgument);
    way.plan({4, 8, 16}, {.scatter = Scatter::kHeads}, {});
  });
}

TEST(HostLayout, TakesHostsOfAsManyRanksEach) {
  const auto layout = [](std::vector<std::uint64_t> hosts) {
    const HostLayout found = host_layout_of(hosts);
    return std::pair(found.hosts, found.per_host);
  };
  EXPECT_EQ(layout({7, 7, 9, 9}), std::pair(2, 2));
  EXPECT_EQ(layout({7, 8, 9}), std::pair(3, 1));
  EXPECT_EQ(layout({7, 7, 7}), std::pair(1, 3));
  EXPECT_EQ(layout({7, 9, 7, 9}), std::pair(1, 4)) << "not one after the other";
  EXPECT_EQ(layout({7, 7, 9}), std::pair(1, 3)) << "uneven";
  EXPECT_EQ(layout({7, 7, 9, 9, 7, 7}), std::pair(1, 6)) << "a host twice";
}

}  // namespace
}  // namespace kvmesh::test
