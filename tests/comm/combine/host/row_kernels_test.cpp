#include "comm/combine/host/row_kernels.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "comm/combine/host/merged_lses.hpp"

namespace kvmesh {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(MergedLses, EqualTheLogOfTheSumOfExponentials) {
  const std::vector<std::vector<float>> rows{{0.0f, 0.0f, 0.0f},        {-3.5f, 2.25f, 1.0f},
                                             {500.0f, 499.0f, -500.0f}, {-80.0f, kNoKeys, -81.0f},
                                             {kNoKeys, kNoKeys, 7.0f},  {-1e30f, -1e30f, -1e30f}};
  MergedLses merged;
  merged.reset(3, std::ssize(rows));
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (int rank = 0; rank < 3; ++rank) {
      merged.lse(rank, static_cast<std::int64_t>(row)) = rows[row][static_cast<std::size_t>(rank)];
    }
  }
  merged.merge();
  for (std::size_t at = 0; at < rows.size(); ++at) {
    const double top = std::ranges::max(rows[at]);
    double sum = 0;
    for (const float lse : rows[at]) sum += std::exp(static_cast<double>(lse) - top);
    const auto row = static_cast<std::int64_t>(at);
    EXPECT_NEAR(merged.merged(row), top + std::log(sum), 2e-7 * std::max(1.0, std::abs(top)));
    for (int rank = 0; rank < 3; ++rank) {
      const double lse = rows[at][static_cast<std::size_t>(rank)];
      EXPECT_NEAR(merged.weight(rank, row), std::exp(lse - top) / sum, 3e-7) << at << ", " << rank;
    }
  }
}

TEST(MergedLses, HandleRowsWithoutKeysAndNan) {
  MergedLses merged;
  merged.reset(2, 3);  // row 0: no rank has keys
  merged.lse(0, 1) = kNan;
  merged.lse(0, 2) = 1.5f;
  merged.merge();
  EXPECT_EQ(merged.merged(0), kNoKeys);
  EXPECT_EQ(merged.weight(0, 0), 0.0f);
  EXPECT_TRUE(std::isnan(merged.merged(1)));
  EXPECT_TRUE(std::isnan(merged.weight(0, 1)));
  EXPECT_EQ(merged.weight(1, 1), 0.0f);
  EXPECT_EQ(merged.merged(2), 1.5f) << "one rank's row is left as it is";
  EXPECT_EQ(merged.weight(0, 2), 1.0f);
}

TEST(RowKernels, SumsEqualScaledRowsBitForBit) {
  for (const std::int64_t dim : {1, 3, 8, 15, 16, 64, 71, 128}) {
    for (const std::size_t ranks : {1, 2, 3, 5}) {
      const auto size = static_cast<std::size_t>(dim);
      std::vector<std::vector<float>> rows;
      std::vector<WeightedRow> sources;
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        auto& row = rows.emplace_back(size);
        for (std::size_t i = 0; i < size; ++i) {
          row[i] = 1.0f / static_cast<float>(3 * i + rank + 1) - 0.3f;
        }
      }
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        sources.push_back({rows[rank].data(), 0.7f / static_cast<float>(rank + 1)});
      }
      std::vector<float> sum(size, kNan), added(size, 0.0f), scaled(size, kNan);
      sum_rows(sum.data(), sources, dim);
      for (const WeightedRow& source : sources) {
        scale_row(scaled.data(), source.o, source.weight, dim);
        add_row(added.data(), scaled.data(), dim);
      }
      for (std::size_t i = 0; i < size; ++i) {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(sum[i]), std::bit_cast<std::uint32_t>(added[i]))
            << "dim " << dim << ", " << ranks << " ranks, element " << i;
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh
