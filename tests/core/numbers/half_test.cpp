#include "core/numbers/half.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kvmesh {
namespace {

// The value of a 16-bit float with `exponent_bits` and `mantissa_bits`, from its definition.
double value_of(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits) + (exponent ? 1.0 : 0.0);
  return sign * std::ldexp(fraction, (exponent ? exponent : 1) - bias);
}

bool same(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b && std::signbit(a) == std::signbit(b);
}

// float8 e4m3 from its definition.
double value_of_float8(int bits) {
  const int mantissa = bits & 7, exponent = bits >> 3 & 15;
  const double sign = bits & 0x80 ? -1.0 : 1.0;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  return sign * std::ldexp(mantissa + (exponent ? 8 : 0), (exponent ? exponent : 1) - 10);
}

TEST(Float8, EveryBitPatternWidensToItsValueAndBack) {
  for (int i = 0; i < 0x100; ++i) {
    const auto bits = static_cast<std::uint8_t>(i);
    EXPECT_TRUE(same(float8_to_float(bits), value_of_float8(i))) << i;
    EXPECT_EQ(float_to_float8(float8_to_float(bits)), bits);
  }
}

TEST(Float8, NarrowsToTheNearestAndTiesToEven) {
  for (std::uint8_t low = 0; low < 0x7E; ++low) {
    const auto high = static_cast<std::uint8_t>(low + 1);
    const float a = float8_to_float(low), b = float8_to_float(high), middle = a + (b - a) / 2;
    for (int sign : {0, 0x80}) {
      const float s = sign ? -1.0f : 1.0f;
      EXPECT_EQ(float_to_float8(s * middle), sign | (low % 2 == 0 ? low : high)) << int{low};
      EXPECT_EQ(float_to_float8(s * std::nextafter(middle, a)), sign | low) << int{low};
      EXPECT_EQ(float_to_float8(s * std::nextafter(middle, b)), sign | high) << int{low};
    }
  }
}

TEST(Float8, SaturatesAndKeepsNan) {
  for (float large : {448.1f, 464.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(float_to_float8(large), 0x7E);
    EXPECT_EQ(float_to_float8(-large), 0xFE);
  }
  EXPECT_TRUE(std::isnan(float8_to_float(float_to_float8(std::nanf("")))));
  EXPECT_EQ(float_to_float8(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(Half, EveryBitPatternWidensToItsValue) {
  for (int i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    EXPECT_TRUE(same(float16_to_float(bits), value_of(bits, 5, 10))) << "float16 " << i;
    EXPECT_TRUE(same(bfloat16_to_float(bits), value_of(bits, 8, 7))) << "bfloat16 " << i;
  }
}

// Between neighbours a and b the nearer one wins, and in the middle the even pattern.
template <class Widen, class Narrow>
void expect_nearest(std::uint16_t low, const Widen& widen, const Narrow& narrow) {
  const auto high = static_cast<std::uint16_t>(low + 1);
  const float a = widen(low), b = widen(high);
  if (!std::isfinite(a) || !std::isfinite(b)) return;
  const float middle = a + (b - a) / 2;
  EXPECT_EQ(narrow(a), low);
  EXPECT_EQ(narrow(middle), low % 2 == 0 ? low : high) << "tie above " << low;
  EXPECT_EQ(narrow(std::nextafter(middle, a)), low) << "below the tie above " << low;
  EXPECT_EQ(narrow(std::nextafter(middle, b)), high) << "above the tie above " << low;
}

TEST(Half, NarrowsToTheNearestAndTiesToEven) {
  for (int i = 0; i < 0x7FFF; ++i) {
    for (int sign : {0, 0x8000}) {
      const auto low = static_cast<std::uint16_t>(i | sign);
      expect_nearest(low, float16_to_float, float_to_float16);
      expect_nearest(low, bfloat16_to_float, float_to_bfloat16);
    }
  }
}

TEST(Half, OverflowAndNaN) {
  const float huge = std::numeric_limits<float>::max();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(float_to_float16(65504.0f), 0x7BFF);
  EXPECT_EQ(float_to_float16(65520.0f), 0x7C00);  // the tie to the next power is infinity
  EXPECT_EQ(float_to_float16(-huge), 0xFC00);
  EXPECT_EQ(float_to_bfloat16(huge), 0x7F80);
  EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(nan))));
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(nan))));
  // A NaN whose payload lies in the bits that are dropped must not become infinity.
  EXPECT_TRUE(std::isnan(
      bfloat16_to_float(float_to_bfloat16(std::bit_cast<float>(std::uint32_t{0x7F800001})))));
}

TEST(Half, StoresAndLoadsByDtype) {
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    std::uint32_t memory[3] = {};
    store_element(memory, dtype, 2, -1.5f);
    EXPECT_EQ(load_element(memory, dtype, 2), -1.5f) << name(dtype);
    EXPECT_EQ(load_element(memory, dtype, 1), 0.0f) << name(dtype);
  }
}

}  // namespace
}  // namespace kvmesh
