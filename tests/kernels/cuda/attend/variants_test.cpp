// Compiles the attention kernels without a GPU for the cases that they support: hot ones may not
// spill.
//
// All cases would take hours. Registers depend on the tile (head dims and rows of a block) with one
// other property, so the cases are chosen such that any two choices meet: each tile with each
// architecture, score mod, mask, dtype, group and so on, and these with one another. Where three
// properties decide together, their cases are listed. A check compiles a dozen of each family's.
// The target attend_variants_before_release compiles all, has more tiles, and chooses such cases
// anew for each architecture: any two choices meet on each.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <span>
#include <utility>

#include "kernels/cuda/attend/choose_attend.hpp"
#include "tests/kernels/cuda/attend/every_pair.hpp"
#include "tests/kernels/cuda/attend/variant_tiles.hpp"
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
constexpr int kPrefillPageSizes[] = {16, 128};
constexpr int kPrefillGatherPageSizes[] = {1, 8, 24};

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
  kPages,
  kAxes,
};

/// Bytes of local memory that a case may take: none, except for the family without tensor cores,
/// for which the compiler prefers occupancy: a few words, fewer than the outputs, which are 16 at
/// the largest v_dim here.
int local_bytes_of(const AttendVariant& variant) { return variant.name == "plain" ? 48 : 0; }

/// Pages of one layout, and the family that reads them: by the copy engine, or otherwise.
struct Pages {
  const char* family;
  bool copied;
  std::span<const int> sizes;
};
constexpr Pages kDecodePages[] = {{"hopper decode", true, kHopperPageSizes}};
constexpr Pages kFloat8DecodePages[] = {{"hopper decode float8", true, kHopperPageSizes}};
constexpr Pages kPrefillPages[] = {{"hopper prefill", true, kPrefillPageSizes}};
constexpr Pages kPrefillGatherPages[] = {{"hopper prefill gather", false, kPrefillGatherPageSizes}};
constexpr Pages kFloat8PrefillPages[] = {{"hopper prefill float8", true, kHopperPageSizes}};
/// Kernels over latent pages are the same, except for how they copy: by tensor maps, or by warps
/// that gather rows.
constexpr Pages kLatentDecodePages[] = {{"hopper decode", true, kHopperPageSizes},
                                        {"hopper decode gather", false, kGatherPageSizes}};
constexpr Pages kLatentPages[] = {{"hopper latent", true, kHopperPageSizes},
                                  {"hopper latent gather", false, kGatherPageSizes}};
constexpr Pages kLatentFloat8Pages[] = {{"hopper latent float8", true, kHopperPageSizes}};
constexpr Pages kMmaPages[] = {{"mma", false, kPageSizes}};
constexpr Pages kExactPages[] = {{"exact", false, kPageSizes}};
constexpr Pages kPlainPages[] = {{"plain", false, kPageSizes}};

/// A family's cases: its tiles, and its choices on the other axes.
struct Table {
  std::span<const VariantTile> tiles;
  std::span<const Chip> chips;
  std::span<const Dtype> pool_dtypes;
  std::span<const Pages> pages;
  bool latent = false;
  /// Number of score mods, masks and so on, from the first. Fewer if a case takes seconds.
  int choices = 3;
  bool head_classes = true;
  bool exact = false;
  bool pool_vectors = true;
  std::span<const VariantTile> more_tiles{};  // before a release

  bool has_scales() const { return info_of(pool_dtypes.front()).has_scales; }
};
constexpr std::span<const Chip> kHopper(kChips + 1, 1);
constexpr Chip kOthers[] = {kChips[0], kChips[2]};
const Table kDecode{kDecodeTiles, kHopper, kHalfDtypes, kDecodePages};
const Table kFloat8Decode{kFloat8Tiles, kHopper, kFloat8Dtypes, kFloat8DecodePages};
const Table kPrefill{.tiles = kPrefillTiles,
                     .chips = kHopper,
                     .pool_dtypes = kHalfDtypes,
                     .pages = kPrefillPages,
                     .choices = 2};
const Table kWidePrefill{.tiles = kWidePrefillTiles,
                         .chips = kHopper,
                         .pool_dtypes = kHalfDtypes,
                         .pages = kPrefillPages,
                         .choices = 2,
                         .head_classes = false};
const Table kPrefillGather{.tiles = kPrefillGatherTiles,
                           .chips = kHopper,
                           .pool_dtypes = kHalfDtypes,
                           .pages = kPrefillGatherPages,
                           .choices = 2};
const Table kWidePrefillGather{.tiles = kWidePrefillGatherTiles,
                               .chips = kHopper,
                               .pool_dtypes = kHalfDtypes,
                               .pages = kPrefillGatherPages,
                               .choices = 2,
                               .head_classes = false};
const Table kFloat8Prefill{.tiles = kFloat8PrefillTiles,
                           .chips = kHopper,
                           .pool_dtypes = kFloat8Dtypes,
                           .pages = kFloat8PrefillPages,
                           .choices = 2};
const Table kWideFloat8Prefill{.tiles = kWideFloat8PrefillTiles,
                               .chips = kHopper,
                               .pool_dtypes = kFloat8Dtypes,
                               .pages = kFloat8PrefillPages,
                               .choices = 2,
                               .head_classes = false};
const Table kLatentDecode{.tiles = kLatentDecodeTiles,
                          .chips = kHopper,
                          .pool_dtypes = kHalfDtypes,
                          .pages = kLatentDecodePages,
                          .latent = true,
                          .choices = 2};
const Table kLatent{.tiles = kLatentTiles,
                    .chips = kHopper,
                    .pool_dtypes = kHalfDtypes,
                    .pages = kLatentPages,
                    .latent = true,
                    .choices = 2};
const Table kLatentFloat8{.tiles = kLatentFloat8Tiles,
                          .chips = kHopper,
                          .pool_dtypes = kFloat8Dtypes,
                          .pages = kLatentFloat8Pages,
                          .latent = true,
                          .choices = 2};
const Table kMma{.tiles = kTiles,
                 .chips = kOthers,
                 .pool_dtypes = kHalfDtypes,
                 .pages = kMmaPages,
                 .more_tiles = kTilesBetween};
const Table kMmaOnHopper{
    .tiles = kTilesOnHopper, .chips = kHopper, .pool_dtypes = kHalfDtypes, .pages = kMmaPages};
const Table kExact{.tiles = kExactTiles,
                   .chips = {kChips, 2},
                   .pool_dtypes = kHalfDtypes,
                   .pages = kExactPages,
                   .choices = 2,
                   .exact = true};
const Table kPlain{.tiles = kPlainTiles,
                   .chips = kChips,
                   .pool_dtypes = kPoolDtypes,
                   .pages = kPlainPages,
                   .pool_vectors = false};

/// The case with these choices.
Variant attend_variant(const Table& table, const Chip& chip, const test::Choices& choices) {
  const VariantTile& tile = table.tiles[static_cast<std::size_t>(choices[kTile])];
  const auto score = score_mods().at(static_cast<std::size_t>(choices[kScore]));
  const auto mask = mask_mods().at(static_cast<std::size_t>(choices[kMask]));
  const int group = std::min(kGroups[choices[kGroup]], tile.row_class);
  const Pages& pages = table.pages[static_cast<std::size_t>(choices[kPages])];
  const int page_size = pages.sizes[static_cast<std::size_t>(choices[kPageSize])];
  const Dtype pool = table.pool_dtypes[static_cast<std::size_t>(choices[kPool])];
  const AttendCase what{
      .shape = {2 * group, 2, tile.k_dim, tile.v_dim, page_size},
      .kinds = {.q = kDtypes[choices[kQuery]],
                .pool = pool,
                .q_vectors = choices[kQueryVectors] == 0,
                .pool_vectors = table.pool_vectors,
                .pool_contiguous = pages.copied,
                .pool_boxes = pages.copied,
                .latent = table.latent,
                .row_scales = info_of(pool).has_scales && choices[kRowScales] != 1,
                .scale_vectors = choices[kRowScales] != 2,
                .has_sinks = choices[kSinks] != 0},
      .fold_scale = score.mod.is_identity() && choices[kNegative] == 0,
      .head_classes = choices[kHeadClasses] != 0,
      .rows = tile.row_class,
      .row_tokens = choices[kRowTokens] != 0 && !table.exact,
      .exact = table.exact,
      .architecture = chip.architecture,
      .limits = chip.limits};
  const AttendVariant variant = choose_attend(what);
  EXPECT_EQ(variant.name, pages.family);
  std::string name = fmt::format(
      "{}_K{}V{}_rows{}{}{}_group{}_page{}{}_{}_q_{}{}{}{}{}{}{}{}", chip.architecture, tile.k_dim,
      tile.v_dim, tile.row_class, score.name, mask.name, group, page_size,
      table.latent && !pages.copied ? "_gathered" : "", kvmesh::name(what.kinds.pool),
      kvmesh::name(what.kinds.q), what.head_classes ? "_heads" : "",
      what.kinds.q_vectors ? "" : "_unaligned", what.fold_scale ? "_folded" : "",
      what.kinds.row_scales ? "_rowscales" : "", what.kinds.scale_vectors ? "" : "_apart",
      what.kinds.has_sinks ? "_sinks" : "", what.row_tokens ? "_tokens" : "");
  const CudaMods text = emit_cuda(score.mod.graph(), mask.mod.graph());
  return {std::move(name), attend_program(variant, text, chip.architecture),
          local_bytes_of(variant)};
}

/// Cases of a table in a check, which may not take minutes.
constexpr std::size_t kMostInCheck = 12;

/// At most as many of the cases, spread over them: they are in the order of their tiles.
std::vector<test::Choices> some_of(const std::vector<test::Choices>& cases, std::size_t most) {
  if (cases.size() <= most) return cases;
  std::vector<test::Choices> some;
  for (std::size_t i = 0; i < most; ++i) some.push_back(cases[i * cases.size() / most]);
  return some;
}

/// The cases of a check; before a release, those of all tiles on each architecture.
std::vector<Variant> variants_of(Table table, bool before_release) {
  std::vector<VariantTile> tiles(table.tiles.begin(), table.tiles.end());
  if (before_release) tiles.insert(tiles.end(), table.more_tiles.begin(), table.more_tiles.end());
  table.tiles = tiles;
  const auto chips = static_cast<int>(table.chips.size());
  const int n = table.choices;
  std::vector<test::Choices> cases =
      test::EveryPair({static_cast<int>(table.tiles.size()), n, n, n, n,
                       static_cast<int>(table.pool_dtypes.size()), n, table.head_classes ? 2 : 1, 2,
                       2, before_release ? 1 : chips, table.has_scales() ? 3 : 1, 2, 2,
                       static_cast<int>(table.pages.size())})
          .cases();
  if (!before_release) cases = some_of(cases, kMostInCheck);
  std::vector<Variant> variants;
  for (int first = 0; first < (before_release ? chips : 1); ++first) {
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
  static constexpr VariantTile kLarge[] = {{128, 128, 128}};
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

/// Mods with masks for kernels of a layout of latent pages: the pairs that `variants_of` lacks
/// there.
std::vector<Variant> latent_mods_with_masks() {
  constexpr int kCap = 1, kCausal = 1, kGathered = 1;
  const auto variant = [](const Table& table, int score, int mask, int pages) {
    test::Choices choices(kAxes, 0);
    choices[kScore] = score;
    choices[kMask] = mask;
    choices[kPages] = pages;
    return attend_variant(table, table.chips.front(), choices);
  };
  return {variant(kLatent, kCap, kCausal, 0), variant(kLatent, 0, 0, kGathered),
          variant(kLatentDecode, 0, kCausal, 0), variant(kLatentDecode, kCap, 0, kGathered)};
}

TEST(AttendTables, CasesChooseTheNamedFamily) {
  for (const Table& table : {kDecode, kFloat8Decode, kPrefill, kWidePrefill, kPrefillGather,
                             kWidePrefillGather, kFloat8Prefill, kWideFloat8Prefill, kLatentDecode,
                             kLatent, kLatentFloat8, kMma, kMmaOnHopper, kExact, kPlain}) {
    // Neither number is 0, and a check never compiles more.
    EXPECT_LE(1u, variants_of(table, false).size());
    EXPECT_LE(variants_of(table, false).size(), variants_of(table, true).size());
  }
}

class AttendVariants : public testing::TestWithParam<Variant> {};

TEST_P(AttendVariants, CompileWithoutSpill) { test::expect_compiles_without_spill(GetParam()); }

std::string name_of(const testing::TestParamInfo<Variant>& info) { return info.param.name; }

auto cases_of(const Table& table) {
  return testing::ValuesIn(variants_of(table, std::getenv("KVMESH_BEFORE_RELEASE") != nullptr));
}
auto mods_with_masks_of(const Table& table) {
  return testing::ValuesIn(prefill_mods_with_masks(table));
}

INSTANTIATE_TEST_SUITE_P(HopperDecode, AttendVariants, cases_of(kDecode), name_of);
INSTANTIATE_TEST_SUITE_P(HopperDecodeFloat8, AttendVariants, cases_of(kFloat8Decode), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefill, AttendVariants, cases_of(kPrefill), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefillModsWithMasks, AttendVariants, mods_with_masks_of(kPrefill),
                         name_of);
INSTANTIATE_TEST_SUITE_P(HopperWidePrefill, AttendVariants, cases_of(kWidePrefill), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefillFloat8, AttendVariants, cases_of(kFloat8Prefill), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefillFloat8ModsWithMasks, AttendVariants,
                         mods_with_masks_of(kFloat8Prefill), name_of);
INSTANTIATE_TEST_SUITE_P(HopperWidePrefillFloat8, AttendVariants, cases_of(kWideFloat8Prefill),
                         name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatentDecode, AttendVariants, cases_of(kLatentDecode), name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatent, AttendVariants, cases_of(kLatent), name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatentModsWithMasks, AttendVariants,
                         testing::ValuesIn(latent_mods_with_masks()), name_of);
INSTANTIATE_TEST_SUITE_P(HopperLatentFloat8, AttendVariants, cases_of(kLatentFloat8), name_of);
INSTANTIATE_TEST_SUITE_P(HopperPrefillGather, AttendVariants, cases_of(kPrefillGather), name_of);
INSTANTIATE_TEST_SUITE_P(HopperWidePrefillGather, AttendVariants, cases_of(kWidePrefillGather),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Mma, AttendVariants, cases_of(kMma), name_of);
INSTANTIATE_TEST_SUITE_P(MmaOnHopper, AttendVariants, cases_of(kMmaOnHopper), name_of);
INSTANTIATE_TEST_SUITE_P(Exact, AttendVariants, cases_of(kExact), name_of);
INSTANTIATE_TEST_SUITE_P(Plain, AttendVariants, cases_of(kPlain), name_of);

}  // namespace
}  // namespace kvmesh::cuda
