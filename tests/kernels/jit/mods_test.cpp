// The CUDA text of mods compiles: every built-in one, and random ones, without warnings.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/jit/compiler.hpp"
#include "tests/kernels/jit/programs.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh {
namespace {

/// Compiles without warnings and without local memory.
void expect_compiles(const ScoreMod& score, const MaskMod& mask, const std::string& architecture) {
  const jit::Cubin cubin = jit::compile(test::mods_program(score, mask, architecture));
  EXPECT_EQ(cubin.log.find("warning"), std::string::npos) << cubin.log;
  ASSERT_EQ(cubin.resources().size(), 1u);
  EXPECT_TRUE(cubin.resources()[0].stays_in_registers()) << cubin.log;
}

TEST(ModsAsCuda, BuiltInOnesCompile) {
  const Buffer<std::int32_t> rows({1, 2, 3});
  const Buffer<float> table({0.5f, -1.0f, 0.25f, 2.0f, 0.0f});
  const std::string hopper = "sm_90a";
  expect_compiles(ScoreMod(), MaskMod(), hopper);
  expect_compiles(mods::alibi(8), mods::causal(), hopper);
  expect_compiles(mods::soft_cap(30.0f), mods::causal_upper_left(rows), hopper);
  expect_compiles(mods::relative_bias(table, 2), mods::sliding_window(100), hopper);
  expect_compiles(mods::compose(mods::alibi(4), mods::soft_cap(5.0f)), mods::prefix_lm(rows),
                  hopper);
  expect_compiles(mods::alibi(8), mods::mask_and(mods::causal(), mods::documents(rows)), "sm_80");
  expect_compiles(mods::alibi(8), mods::mask_or(mods::causal(), mods::documents(rows)), "sm_100");
}

TEST(ModsAsCuda, RandomOnesCompile) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int round = 0; round < 15; ++round) {
    const ScoreMod score = test::random_score(random);
    const MaskMod mask = test::random_mask(random, false);
    SCOPED_TRACE(score.to_string() + mask.to_string());
    EXPECT_NO_THROW(jit::compile(test::mods_program(score, mask)));
  }
}

}  // namespace
}  // namespace kvmesh
