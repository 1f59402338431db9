// The paged cases of PyTorch's flex_attention tests, in kvmesh's terms.
#include <fmt/format.h>

#include "tests/runtime/torch_like/paged_case.hpp"

namespace kvmesh::test {
namespace {

struct NamedScore {
  const char* name;
  ScoreMod score;
};

constexpr float kHidden = -std::numeric_limits<float>::infinity();
const Buffer<float> kHeadBias(Random(1).reals(16));
const Buffer<float> kTokenBias(Random(2).reals(2048));
const Buffer<float> kRowHeadBias(Random(3).reals(4 * 16), 16);

const NamedScore kScores[] = {
    {"identity", ScoreMod()},
    {"times_two", [](auto s, auto, auto, auto, auto) { return s * 2.0f; }},
    {"squared", [](auto s, auto, auto, auto, auto) { return s * s; }},
    {"causal", [](auto s, auto, auto, auto q, auto kv) { return where(q >= kv, s, kHidden); }},
    {"inverse_causal",
     [](auto s, auto, auto, auto q, auto kv) { return where(q <= kv, s, kHidden); }},
    {"rel_bias",
     [](auto s, auto, auto, auto q, auto kv) { return s + to_float(q - kv) * 0.0625f; }},
    {"rel_causal", [](auto s, auto, auto, auto q,
                      auto kv) { return where(q >= kv, s + to_float(q - kv) * 0.0625f, kHidden); }},
    {"alibi", mods::alibi(16)},
    {"soft_cap", mods::soft_cap(2.0f)},
    {"captured_scale", [](auto s, auto, auto h, auto, auto) { return s * kHeadBias[h]; }},
    {"captured_token_bias",
     [](auto s, auto, auto, auto q, auto kv) { return s + kTokenBias[q + kv]; }},
    {"captured_row_head_bias",
     [](auto s, auto b, auto h, auto, auto) { return s + kRowHeadBias.at(b, h); }},
};

// Attends over all keys unless the score says otherwise.
void expect_full(PagedCase& c, const std::vector<std::int64_t>& kv_lens, std::int64_t q_len,
                 const ScoreMod& score) {
  const BlockMask everything =
      BlockMask::create(mods::no_mask(), {.q_len = q_len,
                                          .kv_len = std::ranges::max(kv_lens),
                                          .q_block = 128,
                                          .kv_block = c.shape.page_size});
  PagedAttention::ForwardOptions options{.block_mask = &everything, .score_mod = score};
  OwnedTensor query = c.query(std::ssize(kv_lens), q_len);
  EXPECT_TRUE(c.matches(c.forward(query, kv_lens, options), query, kv_lens, options, {.mask = {}}));
}

// Head counts 16/1, 8/2 and 16/16, on pages of 64, 128 and 256.
struct Heads {
  int q, kv;
};
constexpr Heads kHeads[] = {{16, 1}, {8, 2}, {16, 16}};
constexpr int kPageSizes[] = {64, 128, 256};

class FlexDecoding : public testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(FlexDecoding, BuiltinScoreMods) {
  const auto [heads, page_size, score] = GetParam();
  PagedCase c({.pages = 24,
               .page_size = kPageSizes[page_size],
               .rows = 4,
               .q_heads = kHeads[heads].q,
               .kv_heads = kHeads[heads].kv,
               .k_dim = 32,
               .v_dim = 32,
               .dtype = Dtype::kFloat16});
  const std::vector<std::int64_t> kv_lens{5, 98, 47, 194};
  for (int row = 0; row < 4; ++row) c.assign(row, kv_lens[static_cast<std::size_t>(row)]);
  expect_full(c, kv_lens, 1, kScores[score].score);
  expect_full(c, kv_lens, 3, kScores[score].score);
}

std::string decoding_name(const testing::TestParamInfo<std::tuple<int, int, int>>& info) {
  const auto [heads, page, score] = info.param;
  return fmt::format("Group{}Page{}_{}", kHeads[heads].q / kHeads[heads].kv, kPageSizes[page],
                     kScores[score].name);
}

INSTANTIATE_TEST_SUITE_P(PagedAttention, FlexDecoding,
                         testing::Combine(testing::Range(0, 3), testing::Range(0, 3),
                                          testing::Range(0, static_cast<int>(std::size(kScores)))),
                         decoding_name);

// Numbers of keys that are no multiples of a block.
TEST(FlexAttention, OddKeyCounts) {
  for (std::int64_t length : {1, 125, 1023}) {
    PagedCase c({.pages = 20,
                 .page_size = 128,
                 .rows = 1,
                 .q_heads = 4,
                 .kv_heads = 2,
                 .k_dim = 16,
                 .v_dim = 16});
    c.assign(0, length);
    expect_full(c, {length}, 5, mods::alibi(4));
    expect_full(c, {length}, 1, kScores[10].score);
  }
}

TEST(FlexAttention, KeyAndValueDimsDiffer) {
  for (const auto& [k_dim, v_dim] : {std::pair{64, 16}, std::pair{16, 64}, std::pair{24, 20}}) {
    PagedCase c({.rows = 2, .q_heads = 4, .kv_heads = 2, .k_dim = k_dim, .v_dim = v_dim});
    c.assign(0, 90);
    c.assign(1, 33);
    expect_full(c, {90, 33}, 4, mods::soft_cap(3.0f));
  }
}

// Four ways in which the inputs may lie: [B, H, S, D], [B, S, H, D], rows inside a wider buffer,
// and a broadcast dimension.
class FlexStrides : public testing::TestWithParam<std::tuple<int, int, int>> {};

Layout pattern(int which, std::vector<int> transposed, int broadcast) {
  if (which == 1) return {.order = std::move(transposed)};
  if (which == 2) return {.gap = 1};
  if (which == 3) return {.broadcast = {broadcast}};
  return {};
}

TEST_P(FlexStrides, MatchesFloat64) {
  const auto [query, values, cache] = GetParam();
  PagedLayouts layouts{.query = pattern(query, {0, 2, 1, 3}, 1),
                       .values = pattern(values, {0, 2, 1, 3}, 1),
                       .out = pattern(query % 3, {2, 0, 1, 3}, 0)};
  // A cache is written to, so it cannot be broadcast: all heads of a token together instead.
  layouts.cache =
      cache == 3 ? Layout{.order = {0, 2, 1, 3}, .gap = 4} : pattern(cache, {1, 2, 0, 3}, 0);
  PagedCase c(
      {.rows = 2, .q_heads = 4, .kv_heads = 2, .k_dim = 20, .v_dim = 12, .dtype = Dtype::kBFloat16},
      layouts);
  c.assign(0, 77);
  c.assign(1, 40);
  expect_full(c, {77, 40}, 6, ScoreMod());
}

INSTANTIATE_TEST_SUITE_P(PagedAttention, FlexStrides,
                         testing::Combine(testing::Range(0, 4), testing::Range(0, 4),
                                          testing::Range(0, 4)));

// ---- Masks ----

struct MaskCase {
  const char* name;
  MaskMod mask;
};
const Buffer<std::int32_t> kDocument([] {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 600; ++i) ids.push_back(i / 45);
  return ids;
}());
const Buffer<bool> kHeadSees(std::vector<bool>{true, false, true, true});

const MaskCase kMasks[] = {
    {"causal", mods::causal()},
    // No partly visible tile, no fully visible one, both: windows against pages of 16.
    {"only_full", [](auto, auto, auto q, auto kv) { return q / 16 == kv / 16; }},
    {"only_partial", mods::sliding_window(3)},
    {"full_and_partial", mods::sliding_window(60)},
    {"documents", mods::documents(kDocument)},
    {"head_dependent", [](auto, auto h, auto, auto) { return kHeadSees[h]; }},
    {"head_offset", [](auto, auto h, auto q, auto kv) { return q + 7 * h >= kv; }},
    {"row_dependent", [](auto b, auto, auto q, auto kv) { return q - kv <= 20 * b; }},
    {"fully_masked_rows", [](auto, auto, auto q, auto kv) { return q % 2 == 1 && q >= kv; }},
    {"nothing", [](auto, auto, auto, auto) { return false; }},
};

class FlexMasks : public testing::TestWithParam<std::tuple<int, int>> {};

// With a score mod of relative positions, which the listing computes wrongly where tiles are full.
TEST_P(FlexMasks, WithARelativeBias) {
  const auto [mask, q_block] = GetParam();
  PagedCase c({.rows = 3, .q_heads = 4, .kv_heads = 2, .k_dim = 24, .v_dim = 24});
  const std::vector<std::int64_t> kv_lens{200, 61, 128};
  for (int row = 0; row < 3; ++row) c.assign(row, kv_lens[static_cast<std::size_t>(row)]);
  const BlockMask blocks = BlockMask::create(
      kMasks[mask].mask,
      {.batch = 3, .heads = 4, .q_len = 130, .kv_len = 200, .q_block = q_block, .kv_block = 16});
  PagedAttention::ForwardOptions options{.block_mask = &blocks, .score_mod = kScores[5].score};
  OwnedTensor query = c.query(3, 130);
  const PagedResult result = c.forward(query, kv_lens, options);
  EXPECT_TRUE(c.matches(result, query, kv_lens, options, {.mask = kMasks[mask].mask}));
}

INSTANTIATE_TEST_SUITE_P(PagedAttention, FlexMasks,
                         testing::Combine(testing::Range(0, static_cast<int>(std::size(kMasks))),
                                          testing::Values(16, 128)),
                         [](const auto& param) {
                           return fmt::format("{}_{}", kMasks[std::get<0>(param.param)].name,
                                              std::get<1>(param.param));
                         });

TEST(FlexAttention, FullyMaskedRowsAreZero) {
  PagedCase c({.rows = 1, .q_heads = 2, .kv_heads = 2, .k_dim = 8, .v_dim = 8});
  c.assign(0, 40);
  const MaskMod late([](auto, auto, auto q, auto) { return q >= 6; });
  const BlockMask blocks =
      BlockMask::create(late, {.q_len = 10, .kv_len = 40, .q_block = 4, .kv_block = 16});
  OwnedTensor query = c.query(1, 10);
  const PagedResult result = c.forward(query, {40}, {.block_mask = &blocks});
  for (std::int64_t i = 0; i < 6; ++i) {
    EXPECT_EQ(result.lse.at(0, 1, i), kHidden);
    for (std::int64_t d = 0; d < 8; ++d) EXPECT_EQ(result.out.at(0, 1, i, d), 0.0f);
  }
  EXPECT_GT(result.lse.at(0, 1, 6), kHidden);
}

// External lists: one q block sees pages that its mask mod would hide.
TEST(FlexAttention, AcceptsExternalBlockMask) {
  PagedCase c({.rows = 1, .q_heads = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8});
  c.assign(0, 64);
  const MaskMod even([](auto, auto, auto, auto kv) { return kv % 2 == 0; });
  const BlockRow rows[] = {{.partial = {2}, .full = {0}},
                           {.partial = {}, .full = {3, 1}},
                           {.partial = {0, 1, 2, 3}, .full = {}},
                           {}};
  const BlockMask blocks = BlockMask::from_lists(
      {.heads = 2, .q_len = 10, .kv_len = 64, .q_block = 5, .kv_block = 16}, rows, even);
  const MaskMod visible([](auto, auto h, auto q, auto kv) {
    const auto page = kv / 16;
    const auto first = page == 0 || (page == 2 && kv % 2 == 0);
    return where(h == 0, where(q < 5, first, page == 1 || page == 3), q < 5 && kv % 2 == 0);
  });
  PagedAttention::ForwardOptions options{.block_mask = &blocks};
  OwnedTensor query = c.query(1, 10);
  EXPECT_TRUE(c.matches(c.forward(query, {64}, options), query, {64}, options, {.mask = visible}));
}

// GQA on pages of 16, which does not compile in the listing.
TEST(FlexAttention, GroupedQueriesOnSmallPages) {
  for (const auto& [q_heads, kv_heads] : {std::pair{4, 4}, std::pair{8, 2}, std::pair{16, 1}}) {
    for (int page_size : {1, 3, 16}) {
      PagedCase c({.pages = 120,
                   .page_size = page_size,
                   .rows = 2,
                   .q_heads = q_heads,
                   .kv_heads = kv_heads,
                   .k_dim = 16,
                   .v_dim = 16});
      c.assign(0, 50);
      c.assign(1, 21);
      const std::vector<std::int64_t> kv_lens{50, 21};
      OwnedTensor query = c.query(2, 9);
      EXPECT_TRUE(c.matches(c.forward(query, kv_lens), query, kv_lens));
    }
  }
}

// Queries and outputs of 16 bits.
TEST(FlexAttention, QueriesAndOutputsInHalfPrecision) {
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBFloat16}) {
    PagedCase c({.rows = 1, .q_heads = 2, .kv_heads = 2, .k_dim = 16, .v_dim = 16, .dtype = dtype});
    c.assign(0, 60);
    OwnedTensor rounded = c.query(1, 3), half(dtype, {1, 2, 3, 16}), out(dtype, {1, 2, 3, 16});
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 3; ++i) {
        for (int d = 0; d < 16; ++d) {
          half.set(rounded.at(0, h, i, d), 0, h, i, d);
          rounded.set(half.at(0, h, i, d), 0, h, i, d);
        }
      }
    }
    const PagedResult wide = c.forward(rounded, {60});
    ASSERT_TRUE(c.matches(wide, rounded, {60}));
    const std::vector<std::int64_t> kv_lens{60};
    c.paged.forward(half.view(), c.k_cache.view(), c.v_cache.view(), kv_lens, out.view());
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 3; ++i) {
        for (int d = 0; d < 16; ++d) {
          OwnedTensor one(dtype, {1});
          one.set(wide.out.at(0, h, i, d), 0);
          EXPECT_EQ(out.at(0, h, i, d), one.at(0));
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
