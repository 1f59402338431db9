// The CUDA text of mods against the scalar definition, without a GPU: the host's compiler compiles
// the text together with definitions of CUDA's few functions.
#include "kernels/mods/emit_cuda.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/mods/scalar.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/mods.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

/// CUDA functions that the host lacks.
constexpr std::string_view kHostPrelude = R"(
#include <math.h>
#include <bit>
namespace kvmesh::mod_ops {
inline float near_power_of_two(float a) { return exp2f(a); }
inline float near_reciprocal(float a) { return 1.0f / a; }
}
#define __device__
#define __forceinline__ inline
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float2int_rz(float a) {
  if (a != a) return 0;
  if (a >= 0x1p31f) return 0x7fffffff;
  return a < -0x1p31f ? int(0x80000000u) : static_cast<int>(a);
}
)";

struct Case {
  ScoreMod score;
  MaskMod mask;
};

std::vector<Case> built_in_cases() {
  const Buffer<std::int32_t> documents({0, 0, 0, 1, 1, 2, 2, 2, 2, 3});
  const Buffer<float> table({0.5f, -1.0f, 0.25f, 2.0f, 0.0f});
  return {{mods::alibi(8), mods::causal()},
          {mods::soft_cap(30.0f), mods::sliding_window(7)},
          {mods::relative_bias(table, 2), mods::prefix_lm(5)},
          {mods::compose(mods::alibi(4), mods::soft_cap(5.0f)), mods::documents(documents)},
          {ScoreMod(), mods::mask_or(mods::causal(), !mods::documents(documents))},
          {ScoreMod(), MaskMod()}};
}

std::vector<Case> random_cases(test::Random& random, int count) {
  std::vector<Case> cases;
  for (int i = 0; i < count; ++i) {
    cases.push_back({test::random_score(random), test::random_mask(random, false)});
  }
  return cases;
}

/// The functions of case i are called score_i and mask_i.
std::string source_of(const std::vector<Case>& cases) {
  std::string text(kHostPrelude);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const std::string number = std::to_string(i);
    for (const char* name :
         {"kvmesh_score_mod", "kvmesh_mask_mod", "kHasScoreMod", "kHasMaskMod", "kModBuffers"}) {
      text +=
          std::string("#undef ") + name + "\n#define " + name + " " + name + "_" + number + "\n";
    }
    text += emit_cuda(cases[i].score.graph(), cases[i].mask.graph()).text;
    text += "extern \"C\" float score_" + number +
            "(float s, int b, int h, int q, int kv, const kvmesh::ModBuffers& buffers) {"
            " return kvmesh::kvmesh_score_mod<kvmesh::mod_ops::RoundedMath>(s, b, h, q, kv, "
            "buffers); }\n"
            "extern \"C\" float near_score_" +
            number +
            "(float s, int b, int h, int q, int kv, const kvmesh::ModBuffers& buffers) {"
            " return kvmesh::kvmesh_score_mod<kvmesh::mod_ops::NearMath>(s, b, h, q, kv, buffers); "
            "}\n";
    text += "extern \"C\" bool mask_" + number +
            "(int b, int h, int q, int kv, const kvmesh::ModBuffers& buffers) {"
            " return kvmesh::kvmesh_mask_mod(b, h, q, kv, buffers); }\n";
  }
  return text;
}

/// A shared library compiled from a text and loaded. Leaves no file behind.
class HostLibrary {
 public:
  explicit HostLibrary(const std::string& source) {
    const fs::path stem =
        fs::temp_directory_path() / ("kvmesh_emit_cuda_" + std::to_string(::getpid()));
    const std::string text = stem.string() + ".cpp";
    const std::string library = stem.string() + ".so";
    std::ofstream(text) << source;
    const std::string command = std::string(KVMESH_CXX_COMPILER) +
                                " -std=c++20 -O2 -ffp-contract=off -shared -fPIC -I" +
                                KVMESH_SOURCE_DIR + " -o " + library + " " + text;
    if (std::system(command.c_str()) == 0) handle_.reset(::dlopen(library.c_str(), RTLD_NOW));
    fs::remove(text);
    fs::remove(library);
  }

  bool is_loaded() const { return handle_ != nullptr; }
  template <class Function>
  Function* function(const std::string& name) const {
    return reinterpret_cast<Function*>(::dlsym(handle_.get(), name.c_str()));
  }

 private:
  struct Close {
    void operator()(void* handle) const { ::dlclose(handle); }
  };
  std::unique_ptr<void, Close> handle_;
};

using ScoreFunction = float(float, int, int, int, int, const ModBuffers&);
using MaskFunction = bool(int, int, int, int, const ModBuffers&);

ModBuffers views_of(const std::vector<ModBuffer>& buffers) {
  ModBuffers views{};
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    views.views[i] = {buffers[i].data, static_cast<int>(buffers[i].size)};
  }
  return views;
}

ModPoint random_point(test::Random& random) {
  const bool wild = random.chance(0.3);
  return {.score = wild ? random.wild_real() : random.real(-8.0f, 8.0f),
          .b = random.integer(0, 5),
          .h = random.integer(0, 9),
          .q = wild ? random.wild_integer() : random.integer(0, 60),
          .kv = wild ? random.wild_integer() : random.integer(0, 60)};
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void compare(const HostLibrary& library, std::size_t number, const Case& mods,
             test::Random& random) {
  auto* const score = library.function<ScoreFunction>("score_" + std::to_string(number));
  auto* const mask = library.function<MaskFunction>("mask_" + std::to_string(number));
  ASSERT_TRUE(score && mask);
  const CudaMods emitted = emit_cuda(mods.score.graph(), mods.mask.graph());
  const ModBuffers buffers = views_of(emitted.buffers);
  for (int i = 0; i < 300; ++i) {
    const ModPoint p = random_point(random);
    const float expected = mods.score(p.score, p.b, p.h, p.q, p.kv);
    const float given = score(p.score, p.b, p.h, p.q, p.kv, buffers);
    ASSERT_TRUE(same(given, expected))
        << given << ", expected " << expected << " at score " << p.score << ", b " << p.b << ", h "
        << p.h << ", q " << p.q << ", kv " << p.kv << "\n"
        << mods.score.to_string() << emitted.text;
    ASSERT_EQ(mask(p.b, p.h, p.q, p.kv, buffers), mods.mask(p.b, p.h, p.q, p.kv))
        << "at b " << p.b << ", h " << p.h << ", q " << p.q << ", kv " << p.kv << "\n"
        << mods.mask.to_string() << emitted.text;
  }
}

bool has_compiler() {
  return std::system((std::string(KVMESH_CXX_COMPILER) + " --version >/dev/null 2>&1").c_str()) ==
         0;
}

TEST(EmitCuda, TextComputesTheGraph) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  std::vector<Case> cases = built_in_cases();
  for (Case& made : random_cases(random, 60)) cases.push_back(std::move(made));
  const HostLibrary library(source_of(cases));
  ASSERT_TRUE(library.is_loaded());
  for (std::size_t i = 0; i < cases.size(); ++i) compare(library, i, cases[i], random);
}

std::string text_of(const ScoreMod& score, const MaskMod& mask) {
  return emit_cuda(score.graph(), mask.graph()).text;
}
bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

ScoreMod quotient_by(float divisor) {
  return [=](auto s, auto, auto, auto, auto) { return s / divisor; };
}

bool divides_by_constant(const ScoreMod& score) {
  return contains(text_of(score, MaskMod()), "Math::quotient");
}

void expect_rounded_quotients(ScoreFunction* quotient, float divisor, test::Random& random) {
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
TEST(EmitCuda, QuotientsByConstantsAreRounded) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  constexpr float kDivisors[] = {1.0f,  1.0000001f, 1.9999999f, 3.0f,       7.0f,
                                 30.0f, 50.0f,      64.0f,      4095.9998f, 0x1p24f};
  std::vector<Case> cases;
  for (const float divisor : kDivisors) {
    cases.push_back({quotient_by(divisor), MaskMod()});
    EXPECT_TRUE(divides_by_constant(cases.back().score)) << divisor;
  }
  const HostLibrary library(source_of(cases));
  ASSERT_TRUE(library.is_loaded());
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    auto* const quotient = library.function<ScoreFunction>("near_score_" + std::to_string(i));
    ASSERT_TRUE(quotient);
    expect_rounded_quotients(quotient, kDivisors[i], random);
  }
}

TEST(EmitCuda, OtherQuotientsTakeADivision) {
  for (const float divisor : {0.0f, 0.5f, -30.0f, 0x1p25f}) {
    EXPECT_FALSE(divides_by_constant(quotient_by(divisor))) << divisor;
  }
  EXPECT_FALSE(
      divides_by_constant([](auto s, auto, auto, auto, auto kv) { return s / to_float(kv); }));
}

ScoreMod soft_cap_of(float divisor, float factor) {
  return [=](auto s, auto, auto, auto, auto) { return tanh(s / divisor) * factor; };
}

void expect_near_soft_caps(ScoreFunction* cap, float divisor, float factor, test::Random& random) {
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

TEST(EmitCuda, SoftCapsAreNear) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  constexpr std::pair<float, float> kCaps[] = {{30.0f, 30.0f}, {50.0f, 50.0f}, {1.0f, 8.0f}};
  std::vector<Case> cases{{mods::soft_cap(20.0f), MaskMod()}};
  for (const auto& [divisor, factor] : kCaps) {
    cases.push_back({soft_cap_of(divisor, factor), MaskMod()});
  }
  for (const Case& each : cases) {
    EXPECT_TRUE(contains(text_of(each.score, MaskMod()), "Math::soft_cap"));
  }
  const HostLibrary library(source_of(cases));
  ASSERT_TRUE(library.is_loaded());
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  const auto near = [&](std::size_t i) {
    return library.function<ScoreFunction>("near_score_" + std::to_string(i));
  };
  expect_near_soft_caps(near(0), 20.0f, 20.0f, random);
  for (std::size_t i = 0; i < std::size(kCaps); ++i) {
    expect_near_soft_caps(near(i + 1), kCaps[i].first, kCaps[i].second, random);
  }
}

TEST(EmitCuda, OtherTangentsAreNoSoftCaps) {
  const auto is_soft_cap = [](const ScoreMod& score) {
    return contains(text_of(score, MaskMod()), "Math::soft_cap");
  };
  EXPECT_FALSE(is_soft_cap(soft_cap_of(30.0f, 0.5f)));
  EXPECT_FALSE(is_soft_cap(soft_cap_of(0.5f, 30.0f)));
  EXPECT_FALSE(is_soft_cap([](auto s, auto, auto, auto, auto) { return tanh(s) * 30.0f; }));
}

TEST(EmitCuda, MarksIdentityMods) {
  const std::string none = text_of(ScoreMod(), MaskMod());
  EXPECT_TRUE(contains(none, "kHasScoreMod = false"));
  EXPECT_TRUE(contains(none, "kHasMaskMod = false"));
  const std::string both = text_of(mods::alibi(4), mods::causal());
  EXPECT_TRUE(contains(both, "kHasScoreMod = true"));
  EXPECT_TRUE(contains(both, "kHasMaskMod = true"));
  // A mask that hides everything differs from one that hides nothing.
  EXPECT_TRUE(contains(text_of(ScoreMod(), !MaskMod()), "kHasMaskMod = true"));
}

TEST(EmitCuda, TextDoesNotDependOnBufferContents) {
  const auto mask_of = [](std::vector<std::int32_t> ids) {
    return mods::documents(Buffer<std::int32_t>(ids));
  };
  EXPECT_EQ(text_of(ScoreMod(), mask_of({0, 1})), text_of(ScoreMod(), mask_of({5, 6, 7, 8})));
  EXPECT_NE(text_of(mods::soft_cap(2.0f), MaskMod()), text_of(mods::soft_cap(3.0f), MaskMod()));
}

TEST(EmitCuda, BuffersOfTheScoreComeFirst) {
  const Buffer<float> slopes({1.0f, 2.0f});
  const Buffer<std::int32_t> documents({0, 0, 1});
  const CudaMods emitted =
      emit_cuda(mods::alibi(slopes).graph(), mods::documents(documents).graph());
  ASSERT_EQ(emitted.buffers.size(), 2u);
  EXPECT_EQ(emitted.buffers[0].type, ModType::kFloat32);
  EXPECT_EQ(emitted.buffers[0].size, 2);
  EXPECT_EQ(emitted.buffers[1].type, ModType::kInt32);
  EXPECT_EQ(emitted.buffers[1].size, 3);
}

TEST(EmitCuda, RejectsTooManyBuffers) {
  const auto with_buffers = [](int count) {
    return ScoreMod([count](auto s, auto, auto, auto, auto kv) {
      Expr sum = s;
      for (int i = 0; i < count; ++i) sum += Buffer<float>(std::vector<float>{1.0f, 2.0f})[kv];
      return sum;
    });
  };
  EXPECT_NO_THROW(text_of(with_buffers(kMaxModBuffers), MaskMod()));
  EXPECT_THROW(text_of(with_buffers(kMaxModBuffers + 1), MaskMod()), InvalidArgument);
  EXPECT_THROW(text_of(with_buffers(kMaxModBuffers), mods::documents(Buffer<std::int32_t>({0}))),
               InvalidArgument);
}

}  // namespace
}  // namespace kvmesh
