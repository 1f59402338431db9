// The attention kernels, compiled without a GPU for every case that they support: none may spill.
#include <fmt/format.h>

#include "kernels/cuda/attend_variant.hpp"
#include "kernels/cuda/classifier.hpp"
#include "kernels/cuda/sources.hpp"
#include "tests/kernels/jit/variants.hpp"

namespace kvmesh::cuda {
namespace {

using test::Variant;

struct Chip {
  const char* architecture;
  SharedLimits limits;
};
constexpr Chip kChips[] = {
    {"sm_80", {.block_bytes = 163 * 1024, .multiprocessor_bytes = 164 * 1024}},
    {"sm_90a", {.block_bytes = 227 * 1024, .multiprocessor_bytes = 228 * 1024}},
    {"sm_100", {.block_bytes = 227 * 1024, .multiprocessor_bytes = 228 * 1024}}};

struct Mods {
  const char* name;
  ScoreMod score;
  MaskMod mask;
};

std::vector<Variant> attend_variants() {
  const AttentionShape shapes[] = {{8, 2, 64, 64, 16},
                                   {8, 2, 96, 96, 16},
                                   {8, 2, 128, 128, 16},
                                   {8, 1, 192, 128, 64},
                                   {8, 2, 256, 256, 16}};
  const Mods all_mods[] = {{"plain", {}, {}},
                           {"causal", {}, mods::causal()},
                           {"window_cap", mods::soft_cap(30.0f), mods::sliding_window(1000)}};
  std::vector<Variant> variants;
  for (const Chip& chip : kChips) {
    for (const AttentionShape& shape : shapes) {
      for (int rows : {1, 32, 64, 1000}) {
        for (const Mods& mods : all_mods) {
          const TensorKinds kinds;
          const AttendVariant variant = choose_attend(shape, kinds, mods.score.is_identity(),
                                                      row_class_of(rows, shape), chip.limits);
          variants.push_back(
              {fmt::format("K{}V{}_rows{}_{}_{}", shape.k_dim, shape.v_dim, rows, mods.name,
                           chip.architecture),
               attend_program(variant, emit_cuda(mods.score.graph(), mods.mask.graph()),
                              chip.architecture)});
        }
      }
    }
  }
  return variants;
}

// The small kernels around them, that are made while the program runs.
std::vector<Variant> other_variants() {
  const CudaMods causal = emit_cuda(ScoreMod().graph(), mods::causal().graph());
  std::vector<Variant> variants;
  for (const Chip& chip : kChips) {
    variants.push_back(
        {fmt::format("merge_{}", chip.architecture), merge_program(chip.architecture)});
    for (const bool per_head : {false, true}) {
      for (const int lanes : {1, 32}) {
        variants.push_back(
            {fmt::format("classify_{}_{}_{}", per_head ? "head" : "all", lanes, chip.architecture),
             classify_program({.group = 8, .per_head = per_head, .lanes = lanes}, causal,
                              chip.architecture)});
      }
    }
  }
  return variants;
}

class AttendVariants : public testing::TestWithParam<Variant> {};

TEST_P(AttendVariants, CompileWithoutSpill) { test::expect_compiles_without_spill(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Kernels, AttendVariants, testing::ValuesIn(attend_variants()),
                         [](const auto& param) { return param.param.name; });

INSTANTIATE_TEST_SUITE_P(Others, AttendVariants, testing::ValuesIn(other_variants()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace kvmesh::cuda

namespace kvmesh::test {
void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }
}  // namespace kvmesh::test
