// The bytes and operations of a call, over all ranks, against plain counts.
#include "launch/bench/amounts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "launch/bench/manners.hpp"

namespace kvmesh::bench {
namespace {

constexpr Shape kModel{
    .q_heads = 6, .kv_heads = 2, .k_dim = 8, .v_dim = 4, .page_size = 4, .dtype = Dtype::kFloat32};

/// Sums `amount` over ranks that are threads.
template <class Amount>
double over_ranks(int ranks, const WorkloadShape& shape, const Amount& amount) {
  double sum = 0;
  std::mutex mutex;
  run_on_threads(ranks,
                 [&](Mesh& mesh) {
                   const auto machine = make_cpu_machine(mesh, 1 << 20);
                   Workload workload(mesh, *machine, shape);
                   const double mine = amount(workload);
                   const std::lock_guard lock(mutex);
                   sum += mine;
                 },
                 {.threads = 1});
  return sum;
}

// The contexts end within a page; the longest is past the length that stays on one rank.
const std::int64_t kContexts[] = {9, 30, 3001};
const int kRanks[] = {1, 2, 3};

TEST(Amounts, OperationsCountEveryVisiblePairOnce) {
  for (const std::int64_t context : kContexts) {
    for (const std::int64_t queries : {std::int64_t{1}, std::int64_t{9}, context}) {
      double pairs = 0;
      for (std::int64_t q = context - queries; q < context; ++q)
        pairs += static_cast<double>(q + 1);
      const double expected = 2 * pairs * kModel.q_heads * 2 * (kModel.k_dim + kModel.v_dim);
      for (const int ranks : kRanks) {
        const WorkloadShape shape{.model = kModel, .batch = 2, .context = context};
        EXPECT_EQ(
            over_ranks(ranks, shape, [&](Workload& w) { return attend_operations(w, queries); }),
            expected)
            << context << " tokens, " << queries << " queries, " << ranks << " ranks";
      }
    }
  }
}

TEST(Amounts, BytesCountEachTokenOnceAndEachRowOncePerRank) {
  const double token = kModel.kv_heads * (kModel.k_dim + kModel.v_dim) * 4;
  const double row = kModel.k_dim * 4 + kModel.v_dim * 4 + 4;
  for (const std::int64_t context : kContexts) {
    for (const int ranks : kRanks) {
      const WorkloadShape shape{.model = kModel, .batch = 3, .context = context};
      EXPECT_EQ(over_ranks(ranks, shape, [&](Workload& w) { return attend_bytes(w, 5); }),
                3 * static_cast<double>(context) * token + ranks * 3 * 5 * kModel.q_heads * row);
      EXPECT_EQ(over_ranks(ranks, shape, [&](Workload& w) { return appended_bytes(w, 7); }),
                3 * 7 * token);
    }
  }
}

TEST(Amounts, LatentTokensAreTheirKeys) {
  WorkloadShape shape{.model = kModel, .batch = 3, .context = 30};
  shape.model.page_kind = PageKind::kLatent;
  const double token = kModel.kv_heads * kModel.k_dim * 4;
  const double row = kModel.k_dim * 4 + kModel.v_dim * 4 + 4;
  EXPECT_EQ(over_ranks(1, shape, [&](Workload& w) { return attend_bytes(w, 5); }),
            3 * 30 * token + 3 * 5 * kModel.q_heads * row);
  EXPECT_EQ(over_ranks(1, shape, [&](Workload& w) { return appended_bytes(w, 7); }), 3 * 7 * token);
}

TEST(Amounts, RaggedBatchesCountEachSequenceByItself) {
  const double token = kModel.kv_heads * (kModel.k_dim + kModel.v_dim) * 4;
  const double row = kModel.k_dim * 4 + kModel.v_dim * 4 + 4;
  for (const std::int64_t context : kContexts) {
    const WorkloadShape shape{
        .model = kModel, .batch = 4, .context = context, .lengths = Lengths::kRagged};
    for (const std::int64_t queries : {std::int64_t{1}, std::int64_t{7}, context}) {
      double fresh = 0, pairs = 0;
      for (const std::int64_t length : lengths_of(shape)) {
        for (std::int64_t q = std::max(length - queries, std::int64_t{0}); q < length; ++q) {
          ++fresh;
          pairs += static_cast<double>(q + 1);
        }
      }
      for (const int ranks : kRanks) {
        const auto sum = [&](auto amount) {
          return over_ranks(ranks, shape, [&](Workload& w) { return amount(w, queries); });
        };
        SCOPED_TRACE(::testing::Message() << context << " tokens, " << queries << ", " << ranks);
        EXPECT_EQ(sum(attend_operations),
                  2 * pairs * kModel.q_heads * (kModel.k_dim + kModel.v_dim));
        EXPECT_EQ(sum([](Workload& w, std::int64_t n) { return attend_bytes(w, n); }),
                  4 * static_cast<double>(context) * token + ranks * fresh * kModel.q_heads * row);
        EXPECT_EQ(sum(appended_bytes), fresh * token);
      }
    }
  }
}

// Decode of 32 sequences of 8192 shared and 256 own tokens needs a tenth of the bytes, and less.
TEST(Amounts, SharedPrefixCountsOnce) {
  WorkloadShape shape{.model = kModel, .batch = 32, .context = 8448, .shared_prefix = 8192};
  shape.model.page_size = 16;
  const double token = kModel.kv_heads * (kModel.k_dim + kModel.v_dim) * 4;
  const double rows = 32 * kModel.q_heads * (kModel.k_dim * 4 + kModel.v_dim * 4 + 4);
  double once = 0, each = 0;
  over_ranks(1, shape, [&](Workload& w) {
    once = attend_bytes(w, 1, Output::kPartial, Prefix::kOnce);
    each = attend_bytes(w, 1);
    EXPECT_EQ(w.cache().allocator().free_pages(), 0);
    return 0.0;
  });
  EXPECT_EQ(once, (8192 + 32 * 256) * token + rows);
  EXPECT_EQ(each, 32 * 8448 * token + rows);
  EXPECT_GT(each, 10 * once);
}

// The mean of layers that read all tokens and of layers that read those in the queries' windows,
// whatever pages the window has left.
TEST(Amounts, WindowsCountInEverySecondLayer) {
  const double token = kModel.kv_heads * (kModel.k_dim + kModel.v_dim) * 4;
  const double row = kModel.k_dim * 4 + kModel.v_dim * 4 + 4;
  for (const std::int64_t context : kContexts) {
    for (const std::int64_t window : {1, 11, 5000}) {
      WorkloadShape shape{.model = kModel, .batch = 3, .context = context, .layers = 4};
      shape.model.window = window;
      shape.again = 2;
      const auto in_window = static_cast<double>(std::min(context, window + 1));
      for (const int ranks : kRanks) {
        const double bytes = over_ranks(ranks, shape, [](Workload& w) {
          EXPECT_EQ(w.cache().group_of(2), 0);
          EXPECT_EQ(w.cache().group_of(3), 1);
          for (int i = 0; i < 2; ++i) EXPECT_EQ(w.plan(2, 2, {}).append_tokens(), 3 * 2);
          EXPECT_EQ(w.plan(0, 2, {}).query_tokens(), 3 * 2);
          return attend_bytes(w, 2);
        });
        EXPECT_EQ(bytes, 3 * (static_cast<double>(context) + in_window) / 2 * token +
                             ranks * 3 * 2 * kModel.q_heads * row)
            << context << " tokens, a window of " << window << ", " << ranks << " ranks";
      }
    }
  }
}

// The longest of these lies on all ranks.
TEST(Amounts, ListedTokensCountOncePerList) {
  const double token = kModel.kv_heads * (kModel.k_dim + kModel.v_dim) * 4;
  const double row = kModel.k_dim * 4 + kModel.v_dim * 4 + 4;
  for (const std::int64_t context : kContexts) {
    const WorkloadShape shape{.model = kModel, .batch = 3, .context = context};
    for (const int ranks : kRanks) {
      const double bytes = over_ranks(ranks, shape, [&](Workload& w) {
        const std::vector<std::int32_t> lists = draw_lists(w.lengths(), 2, 20);
        return listed_bytes(w, lists, 2, Output::kPartial);
      });
      // The two queries see 8 and 9 of 9 tokens.
      const double listed = context == 9 ? 8 + 9 : 2 * 20;
      EXPECT_EQ(bytes, 3 * listed * token + ranks * 3 * 2 * kModel.q_heads * row);
    }
  }
}

TEST(Amounts, TokensAreReadAsPagesOfOneToken) {
  WorkloadShape shape{.model = kModel, .batch = 2, .context = 30};
  shape.model.kv_heads = 1;
  over_ranks(1, shape, [&](Workload& w) {
    const std::vector<std::int32_t> lists = draw_lists(w.lengths(), 3, 5);
    const PageReads reads = token_reads(w, lists, 3, {}, {});
    EXPECT_EQ(reads.sequences.size(), 6u);
    const ConstTensorView pages = w.cache().pool(0).k, tokens = reads.pools[0].k;
    EXPECT_EQ(tokens.size(2), 1);
    EXPECT_EQ(tokens.elements(), pages.elements());
    for (std::size_t i = 0; i < lists.size(); ++i) {
      const std::int32_t position = lists[i];
      const PageId page = w.cache().allocator().pages(
          w.sequences()[i / 15])[static_cast<std::size_t>(position / 4)];
      EXPECT_EQ(reads.sequences[i / 5].pages[i % 5] * tokens.stride(0),
                page.index() * pages.stride(0) + position % 4 * pages.stride(2));
    }
    return 0.0;
  });
}

TEST(TokenLists, AreSpreadOverWhatAQuerySees) {
  const std::vector<std::int64_t> lengths{1000, 3};
  const std::vector<std::int32_t> lists = draw_lists(lengths, 4, 10);
  ASSERT_EQ(lists.size(), 10u * (4 + 3));
  for (std::size_t row = 0; row < 4; ++row) {
    for (std::int32_t i = 0; i < 10; ++i) {
      const std::int32_t position = lists[row * 10 + static_cast<std::size_t>(i)];
      EXPECT_GE(position, i * 99) << row;
      EXPECT_LT(position, (i + 1) * 100) << row;
    }
    EXPECT_LE(lists[row * 10 + 9], static_cast<std::int32_t>(996 + row));
  }
  EXPECT_EQ(std::vector(lists.begin() + 60, lists.end()),
            (std::vector{0, 1, 2, -1, -1, -1, -1, -1, -1, -1}));
  EXPECT_EQ(lists, draw_lists(lengths, 4, 10));
}

TEST(DraftTrees, AreFilledLevelAfterLevel) {
  EXPECT_EQ(tree_parents(7, 2), (std::vector{-1, -1, 0, 0, 1, 1, 2}));
  EXPECT_EQ(tree_parents(3, 1), (std::vector{-1, 0, 1}));
}

TEST(Amounts, SentBytesEqualReceivedBytes) {
  constexpr int kCount = 3;
  for (const Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll}) {
    std::vector<Traffic> traffic(kCount);
    run_on_threads(kCount,
                   [&](Mesh& mesh) {
                     const auto machine = make_cpu_machine(mesh, 1 << 20);
                     // Long enough to lie on all ranks, all of which then take part in all rows.
                     Workload workload(mesh, *machine,
                                       {.model = kModel, .batch = 3, .context = 5000});
                     const StepPlan plan = workload.plan(0, 2, {.scatter = scatter});
                     traffic[static_cast<std::size_t>(mesh.rank().value)] =
                         combine_traffic(workload, plan, scatter);
                   },
                   {.threads = 1});
    // Six tokens and six heads: each of three owners has a third of the rows, or all.
    const std::int64_t rows = scatter == Scatter::kAll ? 6 * 6 : 6 * 6 / 3;
    const std::int64_t bytes = rows * (kModel.v_dim + 1) * 4;
    for (std::size_t from = 0; from < kCount; ++from) {
      for (std::size_t to = 0; to < kCount; ++to) {
        EXPECT_EQ(traffic[from].sent[to], from == to ? 0 : bytes) << name(scatter);
        EXPECT_EQ(traffic[to].received[from], traffic[from].sent[to]);
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::bench
