// The functions of mod_ops.cuh that differ for kernels of many rows, compiled by the host's
// compiler.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/mods/emitted_library.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh::test {
namespace {

ScoreMod quotient_by(float divisor) {
  return [=](auto s, auto, auto, auto, auto) { return s / divisor; };
}

bool divides_by_constant(const ScoreMod& score) {
  return contains(text_of(score, MaskMod()), "Math::quotient");
}

void expect_rounded_quotients(ScoreFunction* quotient, float divisor, Random& random) {
  using Limits = std::numeric_limits<float>;
  const auto given = [&](float score) { return quotient(score, 0, 0, 0, 0, ModBuffers{}); };
  std::vector<float> scores{0.0f,          -0.0f,  Limits::infinity(), -Limits::infinity(),
                            Limits::max(), divisor};
  for (int n = 0; n < 200000; ++n) {
    scores.push_back(std::ldexp(random.real(1.0f, 2.0f), random.integer(-76, 127)));
  }
  for (const float score : scores) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(given(score)),
              std::bit_cast<std::uint32_t>(score / divisor))
        << score << " / " << divisor;
    ASSERT_EQ(given(-score), -given(score));
  }
  for (int n = 0; n < 20000; ++n) {
    const float score = std::ldexp(random.real(1.0f, 2.0f), random.integer(-149, -76));
    const float expected = score / divisor;
    ASSERT_LE(std::fabs(given(score) - expected),
              std::nextafter(expected, Limits::infinity()) - expected)
        << score << " / " << divisor;
  }
  EXPECT_TRUE(std::isnan(given(Limits::quiet_NaN())));
}

// They take no division, and are the same bits down to 2^-100; below, the next number at most.
TEST(NearMath, QuotientsByConstantsAreRounded) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  constexpr float kDivisors[] = {1.0f,  1.0000001f, 1.9999999f, 3.0f,       7.0f,
                                 30.0f, 50.0f,      64.0f,      4095.9998f, 0x1p24f};
  std::vector<EmittedMods> cases;
  for (const float divisor : kDivisors) {
    cases.push_back({quotient_by(divisor), MaskMod()});
    EXPECT_TRUE(divides_by_constant(cases.back().score)) << divisor;
  }
  const HostLibrary library(source_of(cases));
  ASSERT_TRUE(library.is_loaded());
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    auto* const quotient = library.function<ScoreFunction>("near_score_" + std::to_string(i));
    ASSERT_TRUE(quotient);
    expect_rounded_quotients(quotient, kDivisors[i], random);
  }
}

TEST(NearMath, OtherQuotientsTakeADivision) {
  for (const float divisor : {0.0f, 0.5f, -30.0f, 0x1p25f}) {
    EXPECT_FALSE(divides_by_constant(quotient_by(divisor))) << divisor;
  }
  EXPECT_FALSE(
      divides_by_constant([](auto s, auto, auto, auto, auto kv) { return s / to_float(kv); }));
}

ScoreMod soft_cap_of(float divisor, float factor) {
  return [=](auto s, auto, auto, auto, auto) { return tanh(s / divisor) * factor; };
}

void expect_near_soft_caps(ScoreFunction* cap, float divisor, float factor, Random& random) {
  const auto given = [&](float score) { return cap(score, 0, 0, 0, 0, ModBuffers{}); };
  for (int n = 0; n < 20000; ++n) {
    const float score = std::ldexp(random.real(-1.0f, 1.0f), random.integer(-20, 20));
    const double exact = double{factor} * std::tanh(double{score} / divisor);
    ASSERT_NEAR(given(score), exact, factor * 0x1p-21) << score << " / " << divisor;
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(given(kInfinity), factor);
  EXPECT_EQ(given(-kInfinity), -factor);
  EXPECT_TRUE(std::isnan(given(std::numeric_limits<float>::quiet_NaN())));
}

TEST(NearMath, SoftCapsAreNear) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  constexpr std::pair<float, float> kCaps[] = {{30.0f, 30.0f}, {50.0f, 50.0f}, {1.0f, 8.0f}};
  std::vector<EmittedMods> cases{{mods::soft_cap(20.0f), MaskMod()}};
  for (const auto& [divisor, factor] : kCaps) {
    cases.push_back({soft_cap_of(divisor, factor), MaskMod()});
  }
  for (const EmittedMods& each : cases) {
    EXPECT_TRUE(contains(text_of(each.score, MaskMod()), "Math::soft_cap"));
  }
  const HostLibrary library(source_of(cases));
  ASSERT_TRUE(library.is_loaded());
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  const auto near = [&](std::size_t i) {
    return library.function<ScoreFunction>("near_score_" + std::to_string(i));
  };
  expect_near_soft_caps(near(0), 20.0f, 20.0f, random);
  for (std::size_t i = 0; i < std::size(kCaps); ++i) {
    expect_near_soft_caps(near(i + 1), kCaps[i].first, kCaps[i].second, random);
  }
}

using CappedFunction = float(float, float, int, int, int);

/// The only mod of a library, as a kernel calls it that caps scores first and has keys in a loop:
/// capped(product, scale, q, first, further), and capped_small.
std::string source_of_capped(const ScoreMod& score) {
  const auto function = [](const std::string& name, const std::string& cap) {
    return "extern \"C\" float " + name +
           "(float product, float scale, int q, int first, int further) {"
           " using namespace kvmesh;" +
           cap +
           " return kvmesh_score_mod<mod_ops::NearMath>(mod_ops::CappedScore{product}, 0, 0, q,"
           " mod_ops::KeyPlace{first, further}, ModBuffers{}); }\n";
  };
  return source_of({{score, MaskMod()}}) +
         function("capped",
                  "product = mod_ops::NearMath::scaled_soft_cap(product, scale, kCapDivisor,"
                  " kCapFactor);") +
         function("capped_small",
                  "mod_ops::SmallCap(scale, kCapDivisor, kCapFactor).apply<1>(&product);") +
         "extern \"C\" float most_small() { return kvmesh::mod_ops::SmallCap::kMost; }\n"
         "extern \"C\" bool takes(float scale) {"
         " return kvmesh::mod_ops::SmallCap::takes(scale, kvmesh::kCapDivisor); }\n";
}

constexpr float kDivisor = 50.0f, kFactor = 30.0f;

void expect_near_capped(CappedFunction* capped, float product, float scale, Random& random) {
  const int q = random.integer(0, 60), first = random.integer(0, 60);
  const int further = random.integer(0, 9);
  const double exact =
      kFactor * std::tanh(double{product} * scale / kDivisor) + 0.5 * (first + further - q);
  ASSERT_NEAR(capped(product, scale, q, first, further), exact, kFactor * 0x1p-20f)
      << product << " * " << scale;
}

// The scale is part of a soft cap that is computed before the mod.
TEST(NearMath, SoftCapsBeforeTheModAreNear) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  const HostLibrary library(source_of_capped([](auto s, auto, auto, auto q, auto kv) {
    return kFactor * tanh(s / kDivisor) + to_float(kv - q) * 0.5f;
  }));
  ASSERT_TRUE(library.is_loaded());
  auto* const capped = library.function<CappedFunction>("capped");
  auto* const small = library.function<CappedFunction>("capped_small");
  auto* const most_small = library.function<float()>("most_small");
  auto* const takes = library.function<bool(float)>("takes");
  ASSERT_TRUE(capped && small && most_small && takes);
  for (const float scale : {1e-6f, -1e6f}) EXPECT_FALSE(takes(scale)) << scale;
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  for (int n = 0; n < 20000; ++n) {
    constexpr float kScales[] = {0.0883f, -1.0f, 0x1p-16f * kDivisor, 0x1p12f * kDivisor};
    const float scale = kScales[random.integer(0, 3)];
    ASSERT_TRUE(takes(scale)) << scale;
    const float any = std::ldexp(random.real(-1.0f, 1.0f), random.integer(-20, 20));
    expect_near_capped(capped, any, scale, random);
    const float below = random.real(-1.0f, 1.0f) * std::ldexp(1.0f, -random.integer(0, 20));
    expect_near_capped(small, below * most_small() * kDivisor / scale, scale, random);
  }
  for (CappedFunction* const each : {capped, small}) {
    EXPECT_TRUE(std::isnan(each(std::numeric_limits<float>::quiet_NaN(), 1.0f, 7, 7, 0)));
    EXPECT_EQ(each(0.0f, 1.0f, 7, 7, 0), 0.0f);
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(capped(kInfinity, 1.0f, 7, 7, 0), kFactor);
  EXPECT_EQ(capped(-kInfinity, 1.0f, 7, 7, 0), -kFactor);
}

// Nearer to the exact value than rounding twice.
TEST(NearMath, SumsOfAProductAreRoundedOnce) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  const ScoreMod mod = [](auto s, auto, auto, auto q, auto kv) {
    return to_float(kv) + s * to_float(kv - q);
  };
  EXPECT_TRUE(contains(text_of(mod, MaskMod()), "Math::product_sum"));
  EXPECT_TRUE(contains(text_of(mod, MaskMod()), "Math::distance(kv, q)"));
  const HostLibrary library(source_of({{mod, MaskMod()}}));
  ASSERT_TRUE(library.is_loaded());
  auto* const near = library.function<ScoreFunction>("near_score_0");
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  for (int n = 0; n < 1000; ++n) {
    const float score = random.real(-8.0f, 8.0f);
    const int q = random.integer(0, 60), kv = random.integer(0, 60);
    const double exact = kv + double{score} * (kv - q);
    ASSERT_EQ(near(score, 0, 0, q, kv, ModBuffers{}), static_cast<float>(exact));
  }
}

TEST(NearMath, OtherTangentsAreNoSoftCaps) {
  const auto is_soft_cap = [](const ScoreMod& score) {
    return contains(text_of(score, MaskMod()), "Math::soft_cap");
  };
  EXPECT_FALSE(is_soft_cap(soft_cap_of(30.0f, 0.5f)));
  EXPECT_FALSE(is_soft_cap(soft_cap_of(0.5f, 30.0f)));
  EXPECT_FALSE(is_soft_cap([](auto s, auto, auto, auto, auto) { return tanh(s) * 30.0f; }));
}

}  // namespace
}  // namespace kvmesh::test
