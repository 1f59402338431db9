// The CUDA text of mods against the scalar definition, without a GPU.
#include "kernels/mods/emit_cuda.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/mods/scalar.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/mods.hpp"
#include "tests/kernels/mods/emitted_library.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh::test {
namespace {

std::vector<EmittedMods> built_in_cases() {
  const Buffer<std::int32_t> documents({0, 0, 0, 1, 1, 2, 2, 2, 2, 3});
  const Buffer<float> table({0.5f, -1.0f, 0.25f, 2.0f, 0.0f});
  return {{mods::alibi(8), mods::causal()},
          {mods::soft_cap(30.0f), mods::sliding_window(7)},
          {mods::relative_bias(table, 2), mods::prefix_lm(5)},
          {mods::compose(mods::alibi(4), mods::soft_cap(5.0f)), mods::documents(documents)},
          {ScoreMod(), mods::mask_or(mods::causal(), !mods::documents(documents))},
          {ScoreMod(), MaskMod()}};
}

std::vector<EmittedMods> random_cases(Random& random, int count) {
  std::vector<EmittedMods> cases;
  for (int i = 0; i < count; ++i) {
    cases.push_back({random_score(random), random_mask(random, false)});
  }
  return cases;
}

ModBuffers views_of(const std::vector<ModBuffer>& buffers) {
  ModBuffers views{};
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    views.views[i] = {buffers[i].data, static_cast<int>(buffers[i].size)};
  }
  return views;
}

ModPoint random_point(Random& random) {
  const bool wild = random.chance(0.3);
  return {.score = wild ? random.wild_real() : random.real(-8.0f, 8.0f),
          .b = random.integer(0, 5),
          .h = random.integer(0, 9),
          .q = wild ? random.wild_integer() : random.integer(0, 60),
          .kv = wild ? random.wild_integer() : random.integer(0, 60)};
}

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void compare(const HostLibrary& library, std::size_t number, const EmittedMods& mods,
             Random& random) {
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

TEST(EmitCuda, TextComputesTheGraph) {
  if (!has_compiler()) GTEST_SKIP() << KVMESH_CXX_COMPILER << " is not here";
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  std::vector<EmittedMods> cases = built_in_cases();
  for (EmittedMods& made : random_cases(random, 60)) cases.push_back(std::move(made));
  const HostLibrary library(source_of(cases));
  ASSERT_TRUE(library.is_loaded());
  for (std::size_t i = 0; i < cases.size(); ++i) compare(library, i, cases[i], random);
}

bool begins_caps(const ScoreMod& score) {
  return !contains(text_of(score, MaskMod()), "kCapFactor = 0x0p+0f");
}

// A kernel begins the soft cap of a score that nothing else reads.
TEST(EmitCuda, NamesTheSoftCapOfTheScore) {
  const std::string text = text_of(mods::soft_cap(30.0f), MaskMod());
  EXPECT_TRUE(contains(text, "kCapDivisor = 0x1.ep+4f")) << text;
  EXPECT_TRUE(contains(text, "kCapFactor = 0x1.ep+4f")) << text;
  EXPECT_TRUE(begins_caps(mods::compose(mods::soft_cap(5.0f), mods::alibi(4))));
  EXPECT_FALSE(begins_caps(ScoreMod()));
  EXPECT_FALSE(begins_caps(mods::compose(mods::alibi(4), mods::soft_cap(5.0f))));
  EXPECT_FALSE(
      begins_caps([](auto s, auto, auto, auto, auto) { return s + 30.0f * tanh(s / 30.0f); }));
  EXPECT_FALSE(begins_caps([](auto s, auto, auto, auto, auto) {
    return 20.0f * tanh(s / 20.0f) + 30.0f * tanh(s / 30.0f);
  }));
}

TEST(EmitCuda, LeavesOutWhatNothingReads) {
  const std::string text = text_of(mods::soft_cap(30.0f), MaskMod());
  EXPECT_FALSE(contains(text, "= score")) << text;
  EXPECT_FALSE(contains(text, "hyperbolic_tangent")) << text;
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
}  // namespace kvmesh::test
