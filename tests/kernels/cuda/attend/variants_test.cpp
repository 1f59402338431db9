// The attention kernels, compiled without a GPU for the cases that they support: hot ones may not
// spill.
//
// All cases would take hours. What decides about registers is the tile (head dims and rows of a
// block) with one other thing, so for each architecture the cases are chosen such that any two
// choices meet: each tile with each score mod, each mask, each dtype, each group and so on, and
// these with one another.
#include <fmt/format.h>

#include <array>
#include <bit>
#include <string_view>
#include <utility>

#include "kernels/cuda/attend/variant.hpp"
#include "tests/kernels/cuda/attend/every_pair.hpp"
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

struct Tile {
  int k_dim, v_dim, row_class;
};
/// Of the tensor-core kernel: the usual head dims with every row class that they have, and some
/// that are not multiples of 16, or of which one is far larger.
constexpr Tile kTiles[] = {{64, 64, 16},   {64, 64, 32},   {64, 64, 64},   {64, 64, 128},
                           {96, 96, 16},   {96, 96, 32},   {96, 96, 64},   {96, 96, 128},
                           {128, 128, 16}, {128, 128, 32}, {128, 128, 64}, {128, 128, 128},
                           {192, 128, 16}, {192, 128, 32}, {192, 128, 64}, {192, 128, 128},
                           {256, 256, 16}, {256, 256, 64}, {72, 40, 16},   {40, 72, 128},
                           {64, 256, 64},  {256, 64, 128}};
/// Of the other one: its dims are free, and it has no rows of a block.
constexpr Tile kPlainTiles[] = {{128, 128, 16}, {5, 3, 16}, {576, 512, 16}};

constexpr Dtype kDtypes[] = {Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat32};
constexpr int kGroups[] = {1, 6, 16};
constexpr int kPageSizes[] = {16, 1, 24};

template <class Mod>
struct Named {
  const char* name;
  Mod mod;
};
std::array<Named<ScoreMod>, 3> score_mods() {
  return {{{"", {}}, {"_cap", mods::soft_cap(30.0f)}, {"_alibi", mods::alibi(16)}}};
}
std::array<Named<MaskMod>, 3> mask_mods() {
  const Buffer<std::int32_t> documents({0, 0, 1});
  return {{{"", {}},
           {"_causal", mods::causal()},
           {"_window_documents",
            mods::mask_and(mods::sliding_window(1000), mods::documents(documents))}}};
}

/// The axes, as indices into what they choose from.
enum Axis {
  kTile,
  kScore,
  kMask,
  kGroup,
  kPageSize,
  kPool,
  kQuery,
  kHeadClasses,
  kQueryVectors,
  kNegative,
};

/// What a case may take of local memory. Two kinds take some:
///
/// - The kernel without tensor cores, whose compiler thinks of occupancy first: a few words, fewer
///   than the outputs, which are 16 at the largest v_dim here.
/// - On Blackwell a score mod with 128 rows of 128 columns: outputs and scores take 192 of 255
///   registers, and what divides by a group or page size that is no power of two, or looks up the
///   classes of heads, some more.
int local_bytes_of(const AttendVariant& variant, const Chip& chip, bool has_score_mod) {
  if (!variant.tensor_cores) return 48;
  const auto needs_division = [](int divisor) {
    return !std::has_single_bit(static_cast<unsigned>(divisor));
  };
  const AttentionShape& shape = variant.shape;
  const bool is_tight = variant.tile.rows() == 128 && shape.v_dim == 128 &&
                        (variant.head_classes || needs_division(shape.q_heads / shape.kv_heads) ||
                         needs_division(shape.page_size));
  return is_tight && has_score_mod && chip.architecture == std::string_view("sm_100") ? 48 : 0;
}

/// Of the case with these choices.
Variant attend_variant(const Chip& chip, const Tile& tile, const test::Choices& choices,
                       bool pool_vectors) {
  const auto score = score_mods().at(static_cast<std::size_t>(choices[kScore]));
  const auto mask = mask_mods().at(static_cast<std::size_t>(choices[kMask]));
  const int group = kGroups[choices[kGroup]];
  const AttentionShape shape{2 * group, 2, tile.k_dim, tile.v_dim, kPageSizes[choices[kPageSize]]};
  const TensorKinds kinds{.q = kDtypes[choices[kQuery]],
                          .pool = kDtypes[choices[kPool]],
                          .q_vectors = choices[kQueryVectors] == 0,
                          .pool_vectors = pool_vectors};
  const bool fold_scale = score.mod.is_identity() && choices[kNegative] == 0;
  AttendVariant variant = choose_attend(shape, kinds, fold_scale, tile.row_class, chip.limits);
  variant.head_classes = choices[kHeadClasses] != 0;
  std::string name = fmt::format(
      "{}_K{}V{}_rows{}{}{}_group{}_page{}_{}_q_{}{}{}{}", chip.architecture, tile.k_dim,
      tile.v_dim, tile.row_class, score.name, mask.name, group, shape.page_size,
      kvmesh::name(kinds.pool), kvmesh::name(kinds.q), variant.head_classes ? "_heads" : "",
      kinds.q_vectors ? "" : "_unaligned", fold_scale ? "_folded" : "");
  const CudaMods text = emit_cuda(score.mod.graph(), mask.mod.graph());
  return {std::move(name), attend_program(variant, text, chip.architecture),
          local_bytes_of(variant, chip, !score.mod.is_identity())};
}

template <std::size_t Tiles>
std::vector<Variant> variants_of(const Tile (&tiles)[Tiles], int pool_dtypes, bool pool_vectors) {
  const std::vector<test::Choices> cases =
      test::EveryPair({static_cast<int>(Tiles), 3, 3, 3, 3, pool_dtypes, 3, 2, 2, 2}).cases();
  std::vector<Variant> variants;
  for (const Chip& chip : kChips) {
    for (const test::Choices& choices : cases) {
      variants.push_back(attend_variant(chip, tiles[choices[kTile]], choices, pool_vectors));
    }
  }
  return variants;
}

std::vector<Variant> tensor_core_variants() { return variants_of(kTiles, 2, true); }
std::vector<Variant> plain_variants() { return variants_of(kPlainTiles, 3, false); }

TEST(AttendTables, AreOfTheKernelsThatTheyName) {
  for (const Variant& variant : tensor_core_variants()) {
    EXPECT_EQ(variant.program.source, "kernels/cuda/attend/mma/attend.cuh") << variant.name;
  }
  for (const Variant& variant : plain_variants()) {
    EXPECT_EQ(variant.program.source, "kernels/cuda/attend/plain/attend.cuh") << variant.name;
  }
}

TEST(AttendVariant, PagesHaveTokens) {
  const AttentionShape shape{.q_heads = 8, .kv_heads = 2, .k_dim = 128, .v_dim = 128};
  EXPECT_THROW(choose_attend(shape, {}, true, 16, {}), InvalidArgument);
}

class AttendVariants : public testing::TestWithParam<Variant> {};

TEST_P(AttendVariants, CompileWithoutSpill) { test::expect_compiles_without_spill(GetParam()); }

INSTANTIATE_TEST_SUITE_P(TensorCores, AttendVariants, testing::ValuesIn(tensor_core_variants()),
                         [](const auto& param) { return param.param.name; });

INSTANTIATE_TEST_SUITE_P(Plain, AttendVariants, testing::ValuesIn(plain_variants()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace kvmesh::cuda
