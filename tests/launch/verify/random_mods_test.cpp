#include "launch/verify/random_mods.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace kvmesh::verify {
namespace {

// Rounding grows as scores do, and with it the distance of right results from float64.
TEST(RandomScore, MakesTheScoresOfNoHeadMoreThanTwiceAsLarge) {
  Random random(5);
  for (int i = 0; i < 100; ++i) {
    const auto [name, mod] = random_score(random, 128);
    for (std::int32_t h = 0; h < 128; ++h) {
      for (const float score : {-3.0f, 3.0f}) {
        const float moved = mod(score, 1, h, 40, 38) - mod(0.0f, 1, h, 40, 38);
        EXPECT_LE(std::abs(moved), 6.0f) << name << ", head " << h;
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::verify
