// Compiles the attention kernels without a GPU for the cases that they support: hot ones may not
// spill.
//
// All cases would take hours. Registers depend on the tile (head dims and rows of a block) with one
// other property, so the cases are chosen such that any two choices meet: each tile with each
// architecture, score mod, mask, dtype, group and so on, and these with one another. The target
// attend_variants_of_each_architecture, for use before a release, chooses such cases anew for each
// architecture: any two choices meet on each. Where three properties decide together, their cases
// are listed.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <span>
#include <utility>

#include "kernels/cuda/attend/family.hpp"
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
/// Tiles of the mma kernel: the usual head dims with every row class that they have, and some that
/// are not multiples of 16, or of which one is far larger.
constexpr Tile kTiles[] = {{64, 64, 16},   {64, 64, 32},   {64, 64, 64},   {64, 64, 128},
                           {96, 96, 16},   {96, 96, 32},   {96, 96, 64},   {96, 96, 128},
                           {128, 128, 16}, {128, 128, 32}, {128, 128, 64}, {128, 128, 128},
                           {192, 128, 16}, {192, 128, 32}, {192, 128, 64}, {192, 128, 128},
                           {256, 256, 16}, {256, 256, 64}, {72, 40, 16},   {40, 72, 128},
                           {64, 256, 64},  {256, 64, 128}};
/// Tiles of Hopper's decode kernel: few rows.
constexpr Tile kDecodeTiles[] = {{64, 64, 8},    {64, 64, 32},   {96, 96, 8},    {96, 96, 32},
                                 {128, 128, 8},  {128, 128, 16}, {128, 128, 32}, {192, 128, 8},
                                 {192, 128, 16}, {192, 128, 32}, {256, 256, 8},  {256, 256, 16},
                                 {256, 64, 32},  {64, 256, 16}};
/// The same over float8 pages.
constexpr Tile kFloat8Tiles[] = {
    {64, 64, 32}, {128, 128, 8}, {128, 128, 32}, {192, 192, 8}, {256, 256, 16}};
/// Tiles of Hopper's prefill kernel: many rows.
constexpr Tile kPrefillTiles[] = {{64, 64, 64},   {64, 64, 128},   {96, 96, 64},   {96, 96, 128},
                                  {128, 128, 64}, {128, 128, 128}, {192, 128, 64}, {192, 128, 128}};
/// The same with wide outputs, for which a block has no masks of each head.
constexpr Tile kWidePrefillTiles[] = {{160, 160, 64},  {160, 160, 128}, {224, 224, 64},
                                      {224, 224, 128}, {256, 256, 64},  {256, 256, 128}};
/// Tiles of the prefill kernel over float8 pages, and those with wide outputs.
constexpr Tile kFloat8PrefillTiles[] = {{64, 64, 64},    {64, 64, 128},  {128, 128, 64},
                                        {128, 128, 128}, {192, 128, 64}, {192, 128, 128},
                                        {64, 128, 128},  {256, 64, 128}};
constexpr Tile kWideFloat8PrefillTiles[] = {{192, 192, 64}, {256, 256, 64}, {64, 256, 64}};
/// The same with latent pages.
constexpr Tile kLatentDecodeTiles[] = {{576, 512, 8}, {576, 512, 16}, {576, 512, 32}};
/// Tiles of the latent kernel.
constexpr Tile kLatentTiles[] = {{576, 512, 64}};
/// Tiles of the latent kernel for float8 pages: one team and two, and other dims.
constexpr Tile kLatentFloat8Tiles[] = {{576, 512, 8},  {576, 512, 16}, {576, 512, 32},
                                       {576, 512, 64}, {192, 128, 8},  {320, 256, 64}};
/// Tiles of the decode kernel with latent keys that warps gather, where two thread blocks share an
/// SM, too.
constexpr Tile kDecodeGatherTiles[] = {
    {576, 512, 8}, {576, 512, 16}, {576, 512, 32}, {320, 256, 16}};
/// Tiles of the kernel of exact sums: one warp of rows, several, and wide outputs.
constexpr Tile kExactTiles[] = {{64, 64, 8},   {128, 128, 8},   {128, 128, 16}, {128, 128, 64},
                                {96, 96, 32},  {192, 128, 128}, {256, 256, 8},  {256, 256, 64},
                                {64, 144, 16}, {72, 40, 8},     {576, 512, 16}, {40, 512, 64}};
/// Tiles of the plain kernel: its dims are free, and its blocks have no rows.
constexpr Tile kPlainTiles[] = {{128, 128, 16}, {5, 3, 16}, {576, 512, 16}};

constexpr Dtype kDtypes[] = {Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat32};
/// Dtypes of pages: for tensor cores, and all.
constexpr Dtype kHalfDtypes[] = {Dtype::kBFloat16, Dtype::kFloat16};
constexpr Dtype kFloat8Dtypes[] = {Dtype::kFloat8E4M3};
constexpr Dtype kPoolDtypes[] = {Dtype::kBFloat16, Dtype::kFloat16, Dtype::kFloat32,
                                 Dtype::kFloat8E4M3};
constexpr int kGroups[] = {1, 6, 16};
constexpr int kPageSizes[] = {16, 1, 24};
constexpr int kHopperPageSizes[] = {16, 8, 128};
constexpr int kGatherPageSizes[] = {1, 4, 64};

template <class Mod>
struct Named {
  const char* name;
  Mod mod;
};
/// The last is for explicit cases alone.
std::array<Named<ScoreMod>, 4> score_mods() {
  const ScoreMod cap = mods::soft_cap(30.0f), alibi = mods::alibi(16);
  return {{{"", {}}, {"_cap", cap}, {"_alibi", alibi}, {"_both", mods::compose(cap, alibi)}}};
}
/// The last is for explicit cases alone.
std::array<Named<MaskMod>, 4> mask_mods() {
  const Buffer<std::int32_t> documents({0, 0, 1});
  const MaskMod window = mods::sliding_window(1000);
  return {{{"", {}},
           {"_causal", mods::causal()},
           {"_window_documents", mods::mask_and(window, mods::documents(documents))},
           {"_window", window}}};
}

/// The axes, as indices into their choices.
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
  kArchitecture,
  kRowScales,
  kSinks,
  kRowTokens,
  kAxes,
};

/// Bytes of local memory that a case may take: none, except for the family without tensor cores,
/// for which the compiler prefers occupancy: a few words, fewer than the outputs, which are 16 at
/// the largest v_dim here.
int local_bytes_of(const AttendVariant& variant) { return variant.name == "plain" ? 48 : 0; }

/// A family's cases: its tiles, and its choices on the other axes.
struct Table {
  const char* family;
  std::span<const Tile> tiles;
  std::span<const Chip> chips;
  std::span<const Dtype> pool_dtypes;
  bool pool_vectors;
  bool pool_contiguous;
  std::span<const int> page_sizes;
  bool latent = false;
  /// Number of score mods, masks and so on, from the first. Fewer if a case takes seconds.
  int choices = 3;
  bool head_classes = true;
  bool exact = false;

  bool has_scales() const { return info_of(pool_dtypes.front()).has_scales; }
};
const Table kDecode{"hopper decode", kDecodeTiles, {kChips + 1, 1}, kHalfDtypes, true, true,
                    kHopperPageSizes};
const Table kFloat8Decode{"hopper decode float8", kFloat8Tiles, {kChips + 1, 1},
                          kFloat8Dtypes,          true,         true,
                          kHopperPageSizes};
const Table kPrefill{"hopper prefill", kPrefillTiles, {kChips + 1, 1},
                     kHalfDtypes,      true,          true,
                     kHopperPageSizes, false,         2};
const Table kWidePrefill{"hopper prefill",
                         kWidePrefillTiles,
                         {kChips + 1, 1},
                         kHalfDtypes,
                         true,
                         true,
                         kHopperPageSizes,
                         false,
                         2,
                         false};
const Table kFloat8Prefill{"hopper prefill float8",
                           kFloat8PrefillTiles,
                           {kChips + 1, 1},
                           kFloat8Dtypes,
                           true,
                           true,
                           kHopperPageSizes,
                           false,
                           2};
const Table kWideFloat8Prefill{"hopper prefill float8",
                               kWideFloat8PrefillTiles,
                               {kChips + 1, 1},
                               kFloat8Dtypes,
                               true,
                               true,
                               kHopperPageSizes,
                               false,
                               2,
                               false};
const Table kLatentDecode{"hopper decode",
                          kLatentDecodeTiles,
                          {kChips + 1, 1},
                          kHalfDtypes,
                          true,
                          true,
                          kHopperPageSizes,
                          true,
                          2};
const Table kLatent{"hopper latent",  kLatentTiles, {kChips + 1, 1},
                    kHalfDtypes,      true,         true,
                    kHopperPageSizes, true,         2};
const Table kLatentFloat8{"hopper latent float8",
                          kLatentFloat8Tiles,
                          {kChips + 1, 1},
                          kFloat8Dtypes,
                          true,
                          true,
                          kHopperPageSizes,
                          true,
                          2};
const Table kDecodeGather{"hopper decode gather",
                          kDecodeGatherTiles,
                          {kChips + 1, 1},
                          kHalfDtypes,
                          true,
                          false,
                          kGatherPageSizes,
                          true,
                          2};
const Table kLatentGather{"hopper latent gather",
                          kLatentTiles,
                          {kChips + 1, 1},
                          kHalfDtypes,
                          true,
                          false,
                          kGatherPageSizes,
                          true,
                          2};
const Table kMma{"mma", kTiles, kChips, kHalfDtypes, true, false, kPageSizes};
const Table kExact{"exact",    kExactTiles, {kChips, 2}, kHalfDtypes, true, false,
                   kPageSizes, false,       2,           true,        true};
const Table kPlain{"plain", kPlainTiles, kChips, kPoolDtypes, false, false, kPageSizes};

/// The case with these choices.
Variant attend_variant(const Table& table, const Chip& chip, const test::Choices& choices) {
  const Tile& tile = table.tiles[static_cast<std::size_t>(choices[kTile])];
  const auto score = score_mods().at(static_cast<std::size_t>(choices[kScore]));
  const auto mask = mask_mods().at(static_cast<std::size_t>(choices[kMask]));
  const int group = std::min(kGroups[choices[kGroup]], tile.row_class);
  const int page_size = table.page_sizes[static_cast<std::size_t>(choices[kPageSize])];
  const Dtype pool = table.pool_dtypes[static_cast<std::size_t>(choices[kPool])];
  const AttendCase what{
      .shape = {2 * group, 2, tile.k_dim, tile.v_dim, page_size},
      .kinds = {.q = kDtypes[choices[kQuery]],
                .pool = pool,
                .q_vectors = choices[kQueryVectors] == 0,
                .pool_vectors = table.pool_vectors,
                .pool_contiguous = table.pool_contiguous,
                .latent = table.latent,
                .row_scales = info_of(pool).has_scales && choices[kRowScales] == 0,
                .has_sinks = choices[kSinks] != 0},
      .fold_scale = score.mod.is_identity() && choices[kNegative] == 0,
      .head_classes = choices[kHeadClasses] != 0,
      .rows = tile.row_class,
      .row_tokens = choices[kRowTokens] != 0 && !table.exact,
      .exact = table.exact,
      .architecture = chip.architecture,
      .limits = chip.limits};
  const AttendVariant variant = choose_attend(what);
  EXPECT_EQ(variant.name, table.family);
  std::string name =
      fmt::format("{}_K{}V{}_rows{}{}{}_group{}_page{}_{}_q_{}{}{}{}{}{}{}", chip.architecture,
                  tile.k_dim, tile.v_dim, tile.row_class, score.name, mask.name, group, page_size,
                  kvmesh::name(what.kinds.pool), kvmesh::name(what.kinds.q),
                  what.head_classes ? "_heads" : "", what.kinds.q_vectors ? "" : "_unaligned",
                  what.fold_scale ? "_folded" : "", what.kinds.row_scales ? "_rowscales" : "",
                  what.kinds.has_sinks ? "_sinks" : "", what.row_tokens ? "_tokens" : "");
  const CudaMods text = emit_cuda(score.mod.graph(), mask.mod.graph());
  return {std::move(name), attend_program(variant, text, chip.architecture),
          local_bytes_of(variant)};
}

std::vector<Variant> variants_of(const Table& table) {
  const auto chips = static_cast<int>(table.chips.size());
  const bool on_each = std::getenv("KVMESH_ON_EACH_ARCHITECTURE") != nullptr;
  const int n = table.choices;
  const std::vector<test::Choices> cases =
      test::EveryPair({static_cast<int>(table.tiles.size()), n, n, n, n,
                       static_cast<int>(table.pool_dtypes.size()), n, table.head_classes ? 2 : 1, 2,
                       2, on_each ? 1 : chips, table.has_scales() ? 2 : 1, 2, 2})
          .cases();
  std::vector<Variant> variants;
  for (int first = 0; first < (on_each ? chips : 1); ++first) {
    for (const test::Choices& choices : cases) {
      const int chip = first + choices[kArchitecture];
      variants.push_back(
          attend_variant(table, table.chips[static_cast<std::size_t>(chip)], choices));
    }
  }
  return variants;
}

/// Score mods with masks beside the most outputs and scores that the prefill kernel has.
std::vector<Variant> prefill_mods_with_masks(const Table& of) {
  static constexpr Tile kLarge[] = {{128, 128, 128}};
  constexpr int kCap = 1, kAlibi = 2, kBoth = 3, kCausal = 1, kWindow = 3;
  constexpr std::pair<int, int> kMods[] = {
      {kCap, kCausal}, {kAlibi, kCausal}, {kAlibi, kWindow}, {kBoth, kCausal}, {kBoth, kWindow}};
  Table table = of;
  table.tiles = kLarge;
  std::vector<Variant> variants;
  for (const auto& [score, mask] : kMods) {
    for (int dtype = 0; dtype < static_cast<int>(table.pool_dtypes.size()); ++dtype) {
      test::Choices choices(kAxes, 0);
      choices[kScore] = score;
      choices[kMask] = mask;
      choices[kPool] = dtype;
      choices[kQuery] = dtype;
      variants.push_back(attend_variant(table, table.chips.front(), choices));
    }
  }
  return variants;
}

TEST(AttendTables, CasesChooseTheNamedFamily) {
  for (const Table& table : {kDecode, kFloat8Decode, kPrefill, kWidePrefill, kFloat8Prefill,
                             kWideFloat8Prefill, kLatentDecode, kLatent, kLatentFloat8,
                             kDecodeGather, kLatentGather, kMma, kExact, kPlain}) {
    EXPECT_FALSE(variants_of(table).empty());
  }
}

class AttendVariants : public testing::TestWithParam<Variant> {};

TEST_P(AttendVariants, CompileWithoutSpill) { test::expect_compiles_without_spill(GetParam()); }

std::string name_of(const testing::TestParamInfo<Variant>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(HopperDecode, AttendVariants, testing::ValuesIn(variants_of(kDecode)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(HopperDecodeFloat8, AttendVariants,
                         testing::ValuesIn(variants_of(kFloat8Decode)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefill, AttendVariants, testing::ValuesIn(variants_of(kPrefill)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefillModsWithMasks, AttendVariants,
                         testing::ValuesIn(prefill_mods_with_masks(kPrefill)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperWidePrefill, AttendVariants,
                         testing::ValuesIn(variants_of(kWidePrefill)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefillFloat8, AttendVariants,
                         testing::ValuesIn(variants_of(kFloat8Prefill)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefillFloat8ModsWithMasks, AttendVariants,
                         testing::ValuesIn(prefill_mods_with_masks(kFloat8Prefill)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperWidePrefillFloat8, AttendVariants,
                         testing::ValuesIn(variants_of(kWideFloat8Prefill)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatentDecode, AttendVariants,
                         testing::ValuesIn(variants_of(kLatentDecode)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatent, AttendVariants, testing::ValuesIn(variants_of(kLatent)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatentFloat8, AttendVariants,
                         testing::ValuesIn(variants_of(kLatentFloat8)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperDecodeGather, AttendVariants,
                         testing::ValuesIn(variants_of(kDecodeGather)), name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatentGather, AttendVariants,
                         testing::ValuesIn(variants_of(kLatentGather)), name_of);
INSTANTIATE_TEST_SUITE_P(Mma, AttendVariants, testing::ValuesIn(variants_of(kMma)), name_of);
INSTANTIATE_TEST_SUITE_P(Exact, AttendVariants, testing::ValuesIn(variants_of(kExact)), name_of);
INSTANTIATE_TEST_SUITE_P(Plain, AttendVariants, testing::ValuesIn(variants_of(kPlain)), name_of);

}  // namespace
}  // namespace kvmesh::cuda
