// Compiles the small kernels around attention without a GPU for all their constants: none may
// spill. They compile fast, so most of the tables are whole.
#include <fmt/format.h>

#include "kernels/cuda/attend/choose_attend.hpp"
#include "kernels/cuda/attend/exact/exact_family.hpp"
#include "kernels/cuda/plan/classifier.hpp"
#include "kernels/cuda/pool/pool_writer.hpp"
#include "tests/kernels/jit/variants.hpp"

namespace kvmesh::cuda {
namespace {

using test::Variant;

constexpr const char* kArchitectures[] = {"sm_80", "sm_90a", "sm_100"};
constexpr Dtype kDtypes[] = {Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat32};

/// Any two dtypes; 16 bytes per thread if they are the same.
std::vector<Variant> append_variants() {
  std::vector<Variant> variants;
  for (const char* architecture : kArchitectures) {
    for (const Dtype fresh : kDtypes) {
      for (const Dtype pool : kDtypes) {
        const std::string types = fmt::format("{}_to_{}_{}", name(fresh), name(pool), architecture);
        const AppendVariant one{
            .k_dim = 5, .v_dim = 3, .fresh = fresh, .pool = pool, .vectors = false};
        variants.push_back({"append_" + types, append_program(one, architecture)});
        if (fresh != pool) continue;
        const AppendVariant latent{.k_dim = 576, .v_dim = 0, .fresh = fresh, .pool = pool};
        variants.push_back({"append_latent_" + types, append_program(latent, architecture)});
        const AppendVariant vectors{.k_dim = 192, .v_dim = 128, .fresh = fresh, .pool = pool};
        variants.push_back({"append_vectors_" + types, append_program(vectors, architecture)});
      }
    }
  }
  return variants;
}

std::vector<Variant> append_float8_variants() {
  std::vector<Variant> variants;
  for (const char* architecture : kArchitectures) {
    for (const Dtype fresh : kDtypes) {
      for (const bool per_token : {false, true}) {
        for (const auto& [k_dim, v_dim] : {std::pair{128, 128}, {576, 0}, {5, 3}}) {
          const AppendFloat8Variant variant{
              .k_dim = k_dim, .v_dim = v_dim, .fresh = fresh, .per_token = per_token};
          variants.push_back({fmt::format("append_float8_{}_K{}V{}_{}_{}", name(fresh), k_dim,
                                          v_dim, per_token ? "token" : "tensor", architecture),
                              append_float8_program(variant, architecture)});
        }
      }
    }
  }
  return variants;
}

std::vector<Variant> merge_variants() {
  std::vector<Variant> variants;
  for (const char* architecture : kArchitectures) {
    for (const int v_dim : {40, 3, 128, 256}) {
      for (const bool shared : {false, true}) {
        variants.push_back(
            {fmt::format("merge_{}{}_{}", v_dim, shared ? "_shared" : "", architecture),
             merge_program(v_dim, shared, architecture)});
      }
    }
    for (const int v_dim : {40, 128, 512}) {
      variants.push_back({fmt::format("merge_exact_{}_{}", v_dim, architecture),
                          exact_merge_program(v_dim, architecture)});
    }
  }
  return variants;
}

/// Page size and group only change divisors.
std::vector<Variant> classify_variants() {
  const Buffer<std::int32_t> documents({0, 0, 1});
  const std::pair<const char*, CudaMods> masks[] = {
      {"nothing", emit_cuda(ScoreMod().graph(), MaskMod().graph())},
      {"causal", emit_cuda(ScoreMod().graph(), mods::causal().graph())},
      {"documents", emit_cuda(ScoreMod().graph(), mods::documents(documents).graph())}};
  std::vector<Variant> variants;
  for (const char* architecture : kArchitectures) {
    for (const auto& [mask, text] : masks) {
      for (const bool per_head : {false, true}) {
        for (const int lanes : {1, 32}) {
          const ClassifyVariant variant{
              .page_size = 24, .group = 6, .per_head = per_head, .lanes = lanes};
          variants.push_back({fmt::format("classify_{}_{}_{}_{}", mask, per_head ? "head" : "all",
                                          lanes, architecture),
                              classify_program(variant, text, architecture)});
        }
      }
    }
  }
  return variants;
}

class SmallVariants : public testing::TestWithParam<Variant> {};

TEST_P(SmallVariants, CompileWithoutSpill) { test::expect_compiles_without_spill(GetParam()); }

std::string name_of(const testing::TestParamInfo<Variant>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Append, SmallVariants, testing::ValuesIn(append_variants()), name_of);
INSTANTIATE_TEST_SUITE_P(AppendFloat8, SmallVariants, testing::ValuesIn(append_float8_variants()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Merge, SmallVariants, testing::ValuesIn(merge_variants()), name_of);
INSTANTIATE_TEST_SUITE_P(Classify, SmallVariants, testing::ValuesIn(classify_variants()), name_of);

}  // namespace
}  // namespace kvmesh::cuda
