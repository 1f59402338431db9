#include "comm/combine/hierarchical/hierarchical_way.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>

#include "comm/combine/host/host_way.hpp"
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

/// Counts the bytes that a rank sends to other hosts.
class LinkCounter final : public Communicator {
 public:
  LinkCounter(Communicator& comm, const HostLayout& hosts) : comm_(&comm), hosts_(hosts) {}

  Rank rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  std::string_view kind() const override { return comm_->kind(); }
  void set_deadline(std::chrono::milliseconds deadline) override { comm_->set_deadline(deadline); }
  std::chrono::milliseconds deadline() const override { return comm_->deadline(); }
  std::uint64_t sent_bytes() const override { return sent_bytes_; }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return comm_->split(color, key);
  }
  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                std::string_view operation) override {
    for (const Outgoing& out : outgoing) {
      if (host_of(out.to) != host_of(rank())) sent_bytes_ += out.bytes.size();
    }
    comm_->exchange(outgoing, incoming, operation);
  }

 private:
  int host_of(Rank rank) const { return rank.value / hosts_.per_host; }

  Communicator* comm_;
  HostLayout hosts_;
  std::uint64_t sent_bytes_ = 0;
};

struct LinkCase {
  HostLayout hosts;
  std::int64_t tokens, heads, dim;  // heads of all ranks
  Scatter scatter;

  std::uint64_t ranks() const { return static_cast<std::uint64_t>(hosts.hosts * hosts.per_host); }
  std::uint64_t rows() const { return static_cast<std::uint64_t>(tokens * heads); }
  std::string describe() const {
    return fmt::format("{} hosts of {}, {} tokens, {} heads, dim {}, to {}", hosts.hosts,
                       hosts.per_host, tokens, heads, dim, name(scatter));
  }
};

/// Bytes from host to host of a combine in which every rank takes part in every row.
std::uint64_t bytes_between_hosts(const LinkCase& link, bool within_hosts_first) {
  std::atomic<std::uint64_t> sum = 0;
  run_loopback(static_cast<int>(link.ranks()), [&](Communicator& comm) {
    LinkCounter counted(comm, link.hosts);
    std::unique_ptr<CombineWay> way =
        std::make_unique<HostWay>(std::make_shared<RowExchange>(counted));
    if (within_hosts_first) {
      way = std::make_unique<HierarchicalWay>(comm.rank(), link.hosts, Device{},
                                              stages_over_hosts(counted, link.hosts));
    }
    CombineCase test = full_case(comm.size(), link.tokens, link.heads, link.dim, link.scatter);
    run_case(*way, test, comm.rank().value, CombineStrategy::kAllToAll);
    sum += counted.sent_bytes();
  });
  return sum;
}

/// `messages` of which each has the plan's digest, and `rows` in all of them.
std::uint64_t bytes_of(const LinkCase& link, std::uint64_t rows, std::uint64_t messages) {
  const auto dim = static_cast<std::uint64_t>(link.dim);
  return rows * (dim + 1) * sizeof(float) + messages * sizeof(PlanDigest);
}

// Every host sends each row to its owner once: per_host times fewer than without hosts.
TEST(HierarchicalWay, SendsEachRowToItsOwnerOncePerHost) {
  for (const HostLayout& hosts : kLayouts) {
    for (const auto& [tokens, heads, dim] : {std::array{1, 1, 16}, std::array{3, 2, 128},
                                             std::array{24, 2, 64}, std::array{65, 1, 5}}) {
      LinkCase link{hosts, tokens, 0, dim, Scatter::kHeads};
      link.heads = heads * static_cast<std::int64_t>(link.ranks());
      SCOPED_TRACE(link.describe());
      const auto others = static_cast<std::uint64_t>(hosts.hosts - 1);
      const auto per_host = static_cast<std::uint64_t>(hosts.per_host);
      const std::uint64_t hierarchical = bytes_between_hosts(link, true);
      const std::uint64_t flat = bytes_between_hosts(link, false);
      EXPECT_EQ(hierarchical, bytes_of(link, others * link.rows(), others * link.ranks()));
      EXPECT_EQ(flat, per_host * hierarchical);
      EXPECT_LE(2 * hierarchical, flat);
    }
  }
}

// Where all ranks get all rows, few rows go to everyone at once, and many to an owner, which sends
// them on when they are merged. Either is decided by the bytes: here both ways do the same.
TEST(HierarchicalWay, SendsRowsToAllOncePerHost) {
  struct Shape {
    std::int64_t tokens, heads, dim;
    bool by_owners;
  };
  for (const HostLayout& hosts : kLayouts) {
    for (const Shape& shape :
         {Shape{6, 2, 16, false}, Shape{12, 3, 32, false}, Shape{96, 4, 1030, true}}) {
      const LinkCase link{hosts, shape.tokens, shape.heads, shape.dim, Scatter::kAll};
      SCOPED_TRACE(link.describe());
      const auto n = static_cast<std::uint64_t>(hosts.hosts);
      const std::uint64_t ranks = link.ranks();
      // Of each rank's messages to all others, these leave its host.
      const std::uint64_t far = ranks - ranks / n;
      // To owners and from owners, or each rank's own partial of every row to every other one.
      const std::uint64_t steps = shape.by_owners ? 2 : 1;
      const std::uint64_t hierarchical_rows = shape.by_owners ? 2 * (n - 1) : n * (n - 1);
      const std::uint64_t flat_rows = shape.by_owners ? 2 * far : ranks * far;
      const std::uint64_t hierarchical = bytes_between_hosts(link, true);
      const std::uint64_t flat = bytes_between_hosts(link, false);
      EXPECT_EQ(hierarchical,
                bytes_of(link, hierarchical_rows * link.rows(), steps * ranks * (n - 1)));
      EXPECT_EQ(flat, bytes_of(link, flat_rows * link.rows(), steps * ranks * far));
      EXPECT_LE(2 * hierarchical, flat);
    }
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
