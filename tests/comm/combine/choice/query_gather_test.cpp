// The query gather over the ranks' communicator: every rank gets the queries of all heads, bit for
// bit, whatever the shares, strides and types are.
#include "comm/combine/choice/query_gather.hpp"

#include <gtest/gtest.h>

#include "tests/support/owned_tensor.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kQueryTokens = 5, kQueryDim = 6;

/// A number that all types hold, and that no two rows share.
float query_at(std::int64_t token, std::int64_t head, std::int64_t d) {
  return static_cast<float>(token * 40 + head * 4 + d % 4);
}

void set_queries(OwnedTensor& tensor, std::int64_t tokens, IndexRange heads) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = heads.begin; h < heads.end; ++h) {
      for (std::int64_t d = 0; d < kQueryDim; ++d)
        tensor.set(query_at(t, h, d), t, h - heads.begin, d);
    }
  }
}

void expect_queries(const OwnedTensor& all, std::int64_t tokens) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < all.size(1); ++h) {
      for (std::int64_t d = 0; d < kQueryDim; ++d) ASSERT_EQ(all.at(t, h, d), query_at(t, h, d));
    }
  }
  EXPECT_EQ(all.written(), tokens * all.size(1) * kQueryDim) << "writes nothing else";
}

/// A rank on the CPU.
struct GatherRank {
  explicit GatherRank(Communicator& comm, const HostLayout& hosts = {},
                      std::optional<WayKind> way = {})
      : comm(comm), group(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}), Device{}) {
    if (hosts.is_hierarchy()) group.set_hosts(hosts);
    gather.emplace(ways, way);
  }
  IndexRange heads_of(std::int64_t heads) const {
    return share_of(heads, comm.rank().value, comm.size());
  }
  void run(OwnedTensor& share, OwnedTensor& all, std::int64_t tokens = kQueryTokens,
           const PlanDigest& digest = {}) {
    gather->run({.mine = share.view(), .all = all.view(), .tokens = tokens, .digest = digest}, {});
  }

  Communicator& comm;
  DeviceGroup group;
  CombineWays ways{group};
  std::optional<QueryGather> gather;
};

class QueryGatherOf : public testing::TestWithParam<RankKind> {};

TEST_P(QueryGatherOf, AnyShares) {
  GetParam().run([](Communicator& comm) {
    GatherRank rank(comm);
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
      for (const std::int64_t heads : {1, 5, 8}) {  // uneven shares, and ranks without heads
        SCOPED_TRACE(std::string(name(dtype)) + ", heads " + std::to_string(heads));
        const IndexRange mine = rank.heads_of(heads);
        OwnedTensor share(dtype, {kQueryTokens, mine.size(), kQueryDim}),
            all(dtype, {kQueryTokens, heads, kQueryDim});
        set_queries(share, kQueryTokens, mine);
        rank.run(share, all);
        expect_queries(all, kQueryTokens);
      }
    }
  });
}

TEST_P(QueryGatherOf, AnyStrides) {
  GetParam().run([](Communicator& comm) {
    GatherRank rank(comm);
    const IndexRange mine = rank.heads_of(7);
    const Layout by_heads{.order = {1, 0, 2}, .gap = 3}, gaps{.gap = 1};
    for (const auto& [from, to] : {std::pair(by_heads, gaps), std::pair(gaps, by_heads)}) {
      OwnedTensor share(Dtype::kBFloat16, {kQueryTokens, mine.size(), kQueryDim}, from);
      OwnedTensor all(Dtype::kBFloat16, {kQueryTokens, 7, kQueryDim}, to);
      set_queries(share, kQueryTokens, mine);
      rank.run(share, all);
      expect_queries(all, kQueryTokens);
    }
  });
}

TEST_P(QueryGatherOf, TokensOfTheBatchAlone) {
  GetParam().run([](Communicator& comm) {
    GatherRank rank(comm);
    const IndexRange mine = rank.heads_of(4);
    OwnedTensor share(Dtype::kFloat32, {kQueryTokens, mine.size(), kQueryDim});
    OwnedTensor all(Dtype::kFloat32, {kQueryTokens, 4, kQueryDim});
    set_queries(share, 2, mine);
    const std::uint64_t before = comm.sent_bytes();
    rank.run(share, all, 2);
    if (comm.size() > 1) {
      expect_queries(all, 2);
      const auto bytes = static_cast<std::uint64_t>(2 * mine.size() * kQueryDim) * sizeof(float);
      const std::uint64_t peers = static_cast<std::uint64_t>(comm.size() - 1);
      EXPECT_EQ(comm.sent_bytes() - before, bytes == 0 ? 0 : peers * (bytes + sizeof(PlanDigest)));
    }
    rank.run(share, all, 0);  // a batch without queries
  });
}

TEST_P(QueryGatherOf, SharesThatAreInTheirPlace) {
  GetParam().run([](Communicator& comm) {
    GatherRank rank(comm);
    const IndexRange mine = rank.heads_of(5);
    OwnedTensor all(Dtype::kFloat16, {kQueryTokens, 5, kQueryDim});
    QueryShares queries{.all = all.view(), .tokens = kQueryTokens};
    queries.mine = queries.place_of(mine);
    for (std::int64_t t = 0; t < kQueryTokens; ++t) {
      for (std::int64_t h = mine.begin; h < mine.end; ++h) {
        for (std::int64_t d = 0; d < kQueryDim; ++d) all.set(query_at(t, h, d), t, h, d);
      }
    }
    rank.gather->run(queries, {});
    expect_queries(all, kQueryTokens);
  });
}

INSTANTIATE_TEST_SUITE_P(Loopback, QueryGatherOf, each_ranks(AllLoopbackRanks()), param_name);

TEST(QueryGather, OfRanksOnSeveralHosts) {
  run_loopback(4, [](Communicator& comm) {
    GatherRank rank(comm, {.hosts = 2, .per_host = 2}, WayKind::kHierarchical);
    const IndexRange mine = rank.heads_of(8);
    OwnedTensor share(Dtype::kFloat32, {kQueryTokens, mine.size(), kQueryDim});
    OwnedTensor all(Dtype::kFloat32, {kQueryTokens, 8, kQueryDim});
    set_queries(share, kQueryTokens, mine);
    rank.run(share, all);
    expect_queries(all, kQueryTokens);
    EXPECT_EQ(rank.gather->host_bytes(), 0u) << "the combine counts its row exchange";
    EXPECT_EQ(rank.gather->generation(), 0u) << "nothing of it can be captured";
  });
}

TEST(QueryGather, RejectsTheQueriesOfAnotherPlan) {
  const auto gather = [](Communicator& comm, std::int64_t tokens, std::uint64_t hash) {
    GatherRank rank(comm);
    OwnedTensor share(Dtype::kFloat32, {kQueryTokens, 1, kQueryDim});
    OwnedTensor all(Dtype::kFloat32, {kQueryTokens, 2, kQueryDim});
    PlanDigest digest;
    digest.add(PlanGroup::kMask, hash);
    rank.run(share, all, tokens, digest);
  };
  const auto with_other_masks = [&](Communicator& comm) {
    gather(comm, kQueryTokens, static_cast<std::uint64_t>(comm.rank().value));
  };
  const auto with_other_tokens = [&](Communicator& comm) {
    gather(comm, kQueryTokens - comm.rank().value, 0);
  };
  EXPECT_THROW(run_loopback(2, with_other_masks), DigestMismatch);
  EXPECT_THROW(run_loopback(2, with_other_tokens), DigestMismatch);
}

}  // namespace
}  // namespace kvmesh::test
