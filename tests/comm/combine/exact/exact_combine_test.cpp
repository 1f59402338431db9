// Exact rows of several ranks are merged and finished to the bits that they have in one place.
#include "comm/combine/exact/exact_combine.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/random.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kHeads = 6;
constexpr int kDim = 24;

class Rows {
 public:
  explicit Rows(std::int64_t rows)
      : memory_(static_cast<std::size_t>(rows * ExactRows::row_bytes(kDim)) / 8, -1) {}
  ExactRows view() { return {memory_.data(), kDim}; }

 private:
  std::vector<std::int64_t> memory_;
};

/// Rows of which each has some chunks of `rank`.
Rows rows_of(int rank, std::int64_t tokens) {
  Random random(90 + static_cast<std::uint64_t>(rank));
  Rows all(tokens * kHeads);
  for (std::int64_t r = 0; r < tokens * kHeads; ++r) {
    const ExactRow row = all.view().row(r);
    clear_row(row, all.view().dim());
    for (std::int64_t chunk = random.integer(0, 3); chunk > 0; --chunk) {
      const auto exponent = static_cast<std::int32_t>(random.integer(-50, 50));
      add_weight(*row.head, 1.5f + random.real(), exponent);
      row.head->max = std::max(row.head->max, static_cast<float>(exponent));
      raise_outputs(row, all.view().dim(), bin_of(exponent + 1));
      for (int d = 0; d < kDim; ++d) {
        ExactSum sum{row.high[d], row.low[d]};
        add_term(sum, row.head->o_bin, random.real(), exponent, bin_of(exponent + 1));
        row.high[d] = sum.high;
        row.low[d] = sum.low;
      }
    }
  }
  return all;
}

Participation random_mask(std::int64_t tokens, int ranks) {
  Random random(4);
  Participation mask(tokens, ranks);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int rank = 0; rank < ranks; ++rank) {
      if (!random.one_in(3)) mask.add(t, Rank{rank});
    }
    if (random.coin()) mask.set_owner(t, Rank{static_cast<int>(random.integer(0, ranks - 1))});
  }
  return mask;
}

/// Merges the rows of all ranks that take part.
class MergedRows {
 public:
  MergedRows(int ranks, std::int64_t tokens, const Participation* mask)
      : mask_(mask), ranks_(ranks) {
    for (int rank = 0; rank < ranks; ++rank) parts_.push_back(rows_of(rank, tokens));
  }
  /// Returns the LSE.
  float finish(std::int64_t token, std::int64_t head, std::vector<float>& o) {
    const ExactRows merged = merged_.view();
    clear_row(merged.row(0), merged.dim());
    for (int rank = 0; rank < ranks_; ++rank) {
      if (mask_ != nullptr && !mask_->has(token, Rank{rank})) continue;
      const ExactRows part = parts_[static_cast<std::size_t>(rank)].view();
      merge_row(merged.row(0), part.row(token * kHeads + head), merged.dim());
    }
    o.resize(kDim);
    return finish_row(merged.row(0), o.data(), kDim);
  }

 private:
  const Participation* mask_;
  int ranks_;
  std::vector<Rows> parts_;
  Rows merged_{1};
};

void expect_equal_rows(Communicator& comm, std::int64_t tokens, const CombineOptions& options) {
  ExactCombine combine(std::make_shared<RowExchange>(comm));
  const CombineShape shape{tokens, kHeads, kDim};
  combine.plan(shape, options, {});
  const int rank = comm.rank().value;
  const RowMap map(shape, comm.size(), options.participation);
  const CombineBlock own = map.block(options.scatter, rank);
  const std::int64_t n = own.tokens.size(), h = own.heads.size();
  std::vector<float> o(static_cast<std::size_t>(n * h * kDim), NAN);
  std::vector<float> lse(static_cast<std::size_t>(n * h), NAN);
  combine.run(rows_of(rank, tokens).view(),
              {{o.data(), Dtype::kFloat32, {n, h, kDim}}, {lse.data(), Dtype::kFloat32, {n, h}}});
  MergedRows merged(comm.size(), tokens, options.participation);
  std::vector<float> want;
  for (std::int64_t row = 0; row < n * h; ++row) {
    const std::int64_t token = own.tokens.begin + row / h;
    if (!own.has_token(token)) continue;
    EXPECT_EQ(lse[static_cast<std::size_t>(row)],
              merged.finish(token, own.heads.begin + row % h, want));
    EXPECT_TRUE(std::equal(want.begin(), want.end(), o.begin() + row * kDim)) << row;
  }
}

// 2 tokens go to all ranks at once, 40 by way of their owners.
TEST(ExactCombine, RowsHaveTheBitsOfOnePlace) {
  for (const int ranks : {1, 2, 3}) {
    run_loopback(
        ranks,
        [&](Communicator& comm) {
          for (const std::int64_t tokens : {2, 40}) {
            const Participation mask = random_mask(tokens, ranks);
            for (const Scatter scatter :
                 {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
              SCOPED_TRACE(testing::Message()
                           << ranks << " ranks, " << tokens << " tokens, " << name(scatter));
              expect_equal_rows(comm, tokens, {.scatter = scatter, .participation = &mask});
              if (scatter == Scatter::kOwner) continue;
              expect_equal_rows(comm, tokens, {.scatter = scatter});
            }
          }
        },
        kTestDeadline);
  }
}

/// Half of the heads is as many rows as half of the tokens, so no length shows the difference.
TEST(ExactCombine, RefusesRowsOfAnotherPlan) {
  run_loopback(
      2,
      [](Communicator& comm) {
        ExactCombine combine(std::make_shared<RowExchange>(comm));
        const int rank = comm.rank().value;
        const CombineOptions options{.scatter = rank == 0 ? Scatter::kHeads : Scatter::kTokens};
        const CombineShape shape{kHeads, kHeads, kDim};
        combine.plan(shape, options, {});
        const CombineBlock own = block_of(shape, options.scatter, rank, 2);
        std::vector<float> o(static_cast<std::size_t>(own.rows() * kDim));
        const std::int64_t tokens = own.tokens.size(), heads = own.heads.size();
        EXPECT_THROW(combine.run(rows_of(rank, kHeads).view(),
                                 {{o.data(), Dtype::kFloat32, {tokens, heads, kDim}}, {}}),
                     DigestMismatch);
      },
      kTestDeadline);
}

/// It merges in its own way, but refuses what a combine of partials refuses.
TEST(ExactCombine, RefusesStrategiesThatTheHostDoesNotHave) {
  run_loopback(1, [](Communicator& comm) {
    ExactCombine combine(std::make_shared<RowExchange>(comm));
    const CombineShape shape{2, kHeads, kDim};
    const Participation mask(2, 1);
    EXPECT_THROW(combine.plan(shape, {.strategy = CombineStrategy::kAllReduce}, {}),
                 InvalidArgument);
    EXPECT_THROW(combine.plan(shape,
                              {.scatter = Scatter::kOwner,
                               .strategy = CombineStrategy::kReduceScatter,
                               .participation = &mask},
                              {}),
                 InvalidArgument);
    EXPECT_NO_THROW(combine.plan(shape, {.strategy = CombineStrategy::kReduceScatter}, {}));
  });
}

}  // namespace
}  // namespace kvmesh::test
