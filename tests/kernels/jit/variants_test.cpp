// The table of supported variants, compiled without a GPU: none may spill or use local memory.
//
// A table of kernels is a function that returns its variants; each variant is one test.
#include "tests/kernels/jit/variants.hpp"

#include <gtest/gtest-spi.h>

#include "tests/kernels/jit/programs.hpp"

namespace kvmesh {
namespace {

using test::Variant;

const std::vector<std::string> kEveryArchitecture{"sm_80", "sm_90a", "sm_100"};

std::vector<Variant> mod_variants() {
  std::vector<Variant> variants;
  const auto add = [&](const char* name, const ScoreMod& score, const MaskMod& mask) {
    const Variant variant{name, test::mods_program(score, mask)};
    for (Variant& each : test::for_each_architecture(variant, kEveryArchitecture)) {
      variants.push_back(std::move(each));
    }
  };
  add("no_mods", ScoreMod(), MaskMod());
  add("alibi_causal", mods::alibi(32), mods::causal());
  add("soft_cap_window", mods::soft_cap(50.0f), mods::sliding_window(4096));
  return variants;
}

class EveryVariant : public testing::TestWithParam<Variant> {};

TEST_P(EveryVariant, CompilesWithoutSpill) { test::expect_compiles_without_spill(GetParam()); }

std::string name_of(const testing::TestParamInfo<Variant>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Mods, EveryVariant, testing::ValuesIn(mod_variants()), name_of);

TEST(Variants, FailWithLocalMemory) {
  static Variant bad{"sample", test::sample_program()};
  EXPECT_NONFATAL_FAILURE(test::expect_compiles_without_spill(bad), "4000 bytes of stack");
}

}  // namespace
}  // namespace kvmesh
