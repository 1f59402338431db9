#include "tests/kernels/cuda/attend/every_pair.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

TEST(EveryPair, AnyTwoChoicesMeet) {
  const std::vector<int> sizes{7, 2, 4, 1, 3};
  const std::vector<test::Choices> cases = test::EveryPair(sizes).cases();
  for (std::size_t a = 0; a < sizes.size(); ++a) {
    for (std::size_t b = a + 1; b < sizes.size(); ++b) {
      std::set<std::pair<int, int>> met;
      for (const test::Choices& choices : cases) {
        ASSERT_EQ(choices.size(), sizes.size());
        ASSERT_TRUE(choices[a] >= 0 && choices[a] < sizes[a]);
        met.insert({choices[a], choices[b]});
      }
      EXPECT_EQ(met.size(), static_cast<std::size_t>(sizes[a] * sizes[b])) << a << ", " << b;
    }
  }
}

TEST(EveryPair, HasFewCases) {
  // 7 * 4 pairs of the two longest axes need 28 cases; the product has 168.
  EXPECT_LE(test::EveryPair({7, 2, 4, 1, 3}).cases().size(), 32u);
}

}  // namespace
}  // namespace kvmesh
