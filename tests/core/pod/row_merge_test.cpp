#include "core/pod/row_merge.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kvmesh {
namespace {

constexpr auto kExp = [](float x) { return std::exp(x); };

static_assert(kNoKeys == -std::numeric_limits<float>::infinity());

TEST(RowMerge, ShiftsByTheLargestUnlessThereIsNoKey) {
  EXPECT_EQ(merge_shift(3.5f), 3.5f);
  EXPECT_EQ(merge_shift(kNoKeys), 0.0f);
  EXPECT_EQ(merge_shift(kNoKeys) + std::log(std::exp(kNoKeys - merge_shift(kNoKeys))), kNoKeys);
}

TEST(RowMerge, OnlyAnEmptySubsetHasNoWeightWhateverTheUnion) {
  EXPECT_EQ(merge_weight(kNoKeys, kNoKeys, kExp), 0.0f);
  EXPECT_EQ(merge_weight(kNoKeys, 1.0f, kExp), 0.0f);
  EXPECT_EQ(merge_weight(kNoKeys, std::nanf(""), kExp), 0.0f);
  EXPECT_EQ(merge_weight(2.0f, 2.0f, kExp), 1.0f);
  EXPECT_TRUE(std::isnan(merge_weight(1.0f, std::nanf(""), kExp)));
  EXPECT_TRUE(std::isnan(merge_weight(std::nanf(""), 1.0f, kExp)));
}

}  // namespace
}  // namespace kvmesh
