#include "kernels/cpu/bfloat16_dots.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/numbers/half.hpp"

namespace kvmesh::cpu {
namespace {

TEST(Bfloat16Dots, MatchFloat64) {
  if (!has_bfloat16_dots()) GTEST_SKIP() << "this processor has none";
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  constexpr int kPairs = 33;
  std::vector<std::uint32_t> q(kPairs * kDotRows);
  for (auto& word : q) {
    word = float_to_bfloat16(normal(random));
    word |= std::uint32_t{float_to_bfloat16(normal(random))} << 16;
  }
  std::vector<std::uint16_t> k(kDotKeys * 2 * kPairs);
  for (auto& element : k) element = float_to_bfloat16(normal(random));
  const std::uint16_t* keys[kDotKeys];
  for (int i = 0; i < kDotKeys; ++i) keys[i] = k.data() + i * 2 * kPairs;

  for (const bool both_halves : {true, false}) {
    std::vector<float> dots(kDotKeys * kDotRows, -1.0f);
    bfloat16_dots(q.data(), kDotRows, keys, kPairs, both_halves, dots.data());
    for (int i = 0; i < kDotKeys * kDotRows; ++i) {
      const int key = i / kDotRows, row = i % kDotRows;
      double expected = 0, magnitude = 0;
      for (int d = 0; d < 2 * kPairs; ++d) {
        const std::uint32_t pair = q[static_cast<std::size_t>(d / 2 * kDotRows + row)];
        const auto element = static_cast<std::uint16_t>(d % 2 == 0 ? pair : pair >> 16);
        const double product =
            double{bfloat16_to_float(element)} * double{bfloat16_to_float(keys[key][d])};
        expected += product;
        magnitude += std::abs(product);
      }
      const bool is_given = both_halves || row < kDotRows / 2;
      const float dot = dots[static_cast<std::size_t>(i)];
      EXPECT_NEAR(dot, is_given ? expected : -1.0,
                  is_given ? 2 * kPairs * 0x1p-24 * magnitude : 0.0)
          << "key " << key << ", row " << row;
    }
  }
}

}  // namespace
}  // namespace kvmesh::cpu
