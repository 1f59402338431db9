// Exact rows of several ranks: merged and finished here, or merged for the caller to finish.
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

void expect_equal_rows(Communicator& comm, std::int64_t tokens, const CombineOptions& options) {
  const auto exchange = std::make_shared<RowExchange>(comm);
  ExactCombine here(exchange), caller(exchange);
  const CombineShape shape{tokens, kHeads, kDim};
  here.plan(shape, options, {});
  caller.plan(shape, options, {}, ExactCombine::Finish::kCaller);
  Rows mine = rows_of(comm.rank().value, tokens);
  const CombineBlock own = caller.own();
  const std::int64_t n = own.tokens.size(), h = own.heads.size();
  std::vector<float> o(static_cast<std::size_t>(n * h * kDim), NAN);
  std::vector<float> lse(static_cast<std::size_t>(n * h), NAN);
  here.run(mine.view(),
           {{o.data(), Dtype::kFloat32, {n, h, kDim}}, {lse.data(), Dtype::kFloat32, {n, h}}});
  Rows merged(n * h);
  caller.run_unfinished(mine.view(), merged.view());
  std::vector<float> finished(kDim);
  for (std::int64_t row = 0; row < n * h; ++row) {
    if (!own.has_token(own.tokens.begin + row / h)) {
      EXPECT_EQ(merged.view().row(row).head->o_bin, kNoBin);
      continue;
    }
    const float got = finish_row(merged.view().row(row), finished.data(), kDim);
    EXPECT_EQ(got, lse[static_cast<std::size_t>(row)]) << row;
    EXPECT_TRUE(std::equal(finished.begin(), finished.end(), o.begin() + row * kDim)) << row;
  }
}

// 2 tokens go to all ranks at once, 40 by way of their owners.
TEST(ExactCombine, MergedRowsFinishToTheSameBits) {
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

}  // namespace
}  // namespace kvmesh::test
