#include "launch/engine/gguf/weight_type.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/numbers/half.hpp"
#include "tests/launch/tiny_gguf.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::engine {
namespace {

TEST(WeightType, EveryHalfConvertsExactly) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double mantissa = static_cast<double>(bits & 1023);
    double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
    if (exponent == 31) expected = std::numeric_limits<double>::infinity();
    if (bits & 0x8000) expected = -expected;
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(half_to_float(half))) << bits;
    } else {
      EXPECT_EQ(static_cast<double>(half_to_float(half)), expected) << bits;
    }
  }
}

TEST(WeightType, DecodesWhatWasEncodedToWithinHalfAStep) {
  const std::uint64_t seed = test::seed_or(21);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  const std::vector<float> values = random.reals(4096);
  const std::vector<std::pair<WeightType, double>> cases{{WeightType::kF32, 0.0},
                                                         {WeightType::kF16, 1.0 / 2048},
                                                         {WeightType::kQ8_0, 0.6 / 127},
                                                         {WeightType::kQ4_0, 0.6 / 7},
                                                         {WeightType::kQ4_1, 0.6 * 2 / 15}};
  for (const auto& [type, bound] : cases) {
    const std::string bytes = test::encode_weights(type, values);
    std::vector<float> decoded(values.size(), std::nanf(""));
    dequantize(type, reinterpret_cast<const std::byte*>(bytes.data()), decoded);
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(decoded[i], values[i], bound) << block_layout(type)->name << " element " << i;
    }
  }
}

/// A block with byte i = 37 i + 11 (mod 256) and the scales 0.5 and 0.25; the expected elements
/// come from the decoder of the `gguf` package for Python.
std::vector<float> decode_pattern(WeightType type, std::vector<std::size_t> scales_at) {
  const BlockLayout layout = block_layout(type).value();
  std::vector<std::uint8_t> block;
  for (std::int64_t i = 0; i < layout.bytes; ++i) {
    block.push_back(static_cast<std::uint8_t>(37 * i + 11));
  }
  float scale = 0.5f;
  for (std::size_t at : scales_at) {
    const std::uint16_t half = float_to_float16(scale);
    block[at] = static_cast<std::uint8_t>(half);
    block[at + 1] = static_cast<std::uint8_t>(half >> 8);
    scale /= 2;
  }
  std::vector<float> out(static_cast<std::size_t>(layout.elements), std::nanf(""));
  dequantize(type, reinterpret_cast<const std::byte*>(block.data()), out);
  return out;
}

std::vector<float> every_29th(const std::vector<float>& values) {
  std::vector<float> some;
  for (std::size_t i = 0; i < values.size(); i += 29) some.push_back(values[i]);
  return some;
}

TEST(WeightType, KQuantsDecodeAsThePackageForPythonDoes) {
  EXPECT_EQ(
      every_29th(decode_pattern(WeightType::kQ4K, {0, 2})),
      (std::vector<float>{157.75f, 173.25f, -4.0f, 271.75f, 82.5f, -3.0f, 292.5f, 44.75f, 9.25f}));
  EXPECT_EQ(every_29th(decode_pattern(WeightType::kQ6K, {208})),
            (std::vector<float>{-715.5f, 160.0f, 841.0f, 682.0f, 200.0f, -384.0f, -945.5f, 1089.0f,
                                352.5f}));
}

// Every third element, and the sum of each times its number from 1, which all of them change.
TEST(WeightType, FiveBitsDecodeAsThePackageForPythonDoes) {
  const auto expect = [](WeightType type, std::vector<std::size_t> scales_at, std::size_t step,
                         const std::vector<float>& some, double sum) {
    const std::vector<float> all = decode_pattern(type, std::move(scales_at));
    double numbered = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      numbered += static_cast<double>(i + 1) * static_cast<double>(all[i]);
      if (i % step == 0) {
        EXPECT_EQ(all[i], some.at(i / step)) << i;
      }
    }
    EXPECT_EQ(numbered, sum);
  };
  expect(WeightType::kQ5_0, {0}, 3,
         {4.5f, -4.0f, 3.5f, 3.0f, 2.5f, -6.0f, 1.5f, -3.0f, -7.5f, -4.0f, 7.0f}, 56.0);
  expect(WeightType::kQ5_1, {0, 2}, 3,
         {9.75f, 9.25f, 0.75f, 0.25f, 7.75f, 15.25f, 3.75f, 15.25f, 2.75f, 14.25f, 1.75f}, 4082.5);
  expect(WeightType::kQ5K, {0, 2}, 29,
         {405.75f, 173.25f, 16.0f, 599.75f, 152.5f, 309.0f, 592.5f, 436.75f, 39.25f}, 8013724.0);
}

TEST(WeightType, UnknownTypeHasNoLayout) {
  EXPECT_FALSE(block_layout(static_cast<WeightType>(999)).has_value());
  EXPECT_FALSE(block_layout(WeightType::kQ2K)->supported);
}

}  // namespace
}  // namespace kvmesh::engine
