// Logical masks and scores over physical positions.
#include "tests/runtime/torch_like/paged_case.hpp"

namespace kvmesh::test {
namespace {

constexpr int kPage = 4, kPages = 15;
constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Three rows whose pages interleave, one of them erased and reserved again.
PagedCase interleaved() {
  PagedCase c({.pages = kPages,
               .page_size = kPage,
               .rows = 3,
               .q_heads = 4,
               .kv_heads = 2,
               .k_dim = 8,
               .v_dim = 8});
  c.assign(0, 3);
  c.assign(1, 9);
  c.assign(0, 14);
  c.erase(1);
  c.assign(2, 17);
  c.assign(1, 11);
  return c;
}

// Returns the position of `physical` in row `row`; -1: not in the row.
std::int32_t logical_of(const PagedCase& c, int row, std::int32_t physical) {
  const std::span<const PageId> pages = c.paged.pages(row);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (pages[i].index() == physical / kPage)
      return static_cast<std::int32_t>(i) * kPage + physical % kPage;
  }
  return -1;
}

void expect_translated(const PagedCase& c, const std::vector<std::int64_t>& kv_lens,
                       const std::vector<int>& batch_idx) {
  const MaskMod mask(
      [](auto b, auto h, auto q, auto kv) { return q + b + h >= kv || kv % 5 == 0; });
  const ScoreMod score([](auto s, auto b, auto h, auto q, auto kv) {
    return s + to_float(1000 * b + 100 * h + 10 * q + kv);
  });
  const MaskMod physical_mask = c.paged.get_mask_mod(mask, kv_lens, batch_idx);
  const ScoreMod physical_score = c.paged.get_score_mod(score, kv_lens, batch_idx);
  const int batch = batch_idx.empty() ? 3 : static_cast<int>(batch_idx.size());
  for (std::int32_t b = 0; b < batch; ++b) {
    const auto i = static_cast<std::size_t>(b);
    const int row = batch_idx.empty() ? b : batch_idx[i];
    const std::int64_t length = kv_lens.empty() ? c.paged.capacity(row) : kv_lens[i];
    for (std::int32_t physical = 0; physical < kPages * kPage; ++physical) {
      const std::int32_t logical = logical_of(c, row, physical);
      const bool valid = logical >= 0 && logical < length;
      for (std::int32_t h : {0, 3}) {
        for (std::int32_t q : {0, 7}) {
          EXPECT_EQ(physical_mask(b, h, q, physical), valid && mask(b, h, q, logical));
          EXPECT_EQ(physical_score(0.5f, b, h, q, physical),
                    valid ? score(0.5f, b, h, q, logical) : kMasked);
        }
      }
    }
  }
}

TEST(PagedMods, EveryPhysicalPosition) {
  const PagedCase c = interleaved();
  expect_translated(c, {14, 11, 17}, {});
  expect_translated(c, {13, 4, 0}, {});
  expect_translated(c, {}, {});
  expect_translated(c, {17, 3}, {2, 0});
  expect_translated(c, {}, {1, 1, 2});
}

TEST(PagedMods, WithoutAModOnlyOwnershipDecides) {
  const PagedCase c = interleaved();
  const MaskMod mask = c.paged.get_mask_mod({});
  const ScoreMod score = c.paged.get_score_mod({});
  for (std::int32_t physical = 0; physical < kPages * kPage; ++physical) {
    const bool mine = logical_of(c, 1, physical) >= 0;
    EXPECT_EQ(mask(1, 0, 0, physical), mine);
    EXPECT_EQ(score(2.0f, 1, 0, 0, physical), mine ? 2.0f : kMasked);
  }
}

TEST(PagedMods, Errors) {
  const PagedCase c = interleaved();
  const std::vector<std::int64_t> two{1, 1}, four{1, 1, 1, 1};
  EXPECT_THROW(c.paged.get_mask_mod({}, two, std::vector{0}), InvalidArgument);
  EXPECT_THROW(c.paged.get_score_mod({}, two, std::vector{0, 3}), InvalidArgument);
  EXPECT_THROW(c.paged.get_mask_mod({}, four), InvalidArgument);
}

// As flex_attention uses them: the whole cache is one sequence, and every page of it is visited.
class PagedModsOverTheFlatCache : public testing::TestWithParam<bool> {};

TEST_P(PagedModsOverTheFlatCache, EqualForward) {
  const bool hide_by_score = GetParam();
  PagedCase c = interleaved();
  // The kernel reads the flat cache to its end, where a NaN with a weight of 0 could show: the
  // poison stays there to test that it does not.
  const std::vector<std::int64_t> kv_lens{14, 11, 17};
  PagedAttention::ForwardOptions options{.score_mod = mods::alibi(4)};
  OwnedTensor query = c.query(3, 6);
  const PagedResult direct = c.forward(query, kv_lens, options);
  ASSERT_TRUE(c.matches(direct, query, kv_lens, options));

  // All rows share the pages 0 .. kPages - 1 in their physical order.
  AttentionBatch batch{.q_indptr = {0, 6, 12, 18},
                       .kv_lens = {60, 60, 60},
                       .q_positions = {},
                       .page_indptr = {0, 15, 30, 45},
                       .pages = {}};
  OwnedTensor packed(Dtype::kFloat32, {18, 4, 8}), o(Dtype::kFloat32, {18, 4, 8}),
      lse(Dtype::kFloat32, {18, 4});
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int32_t page = 0; page < kPages; ++page) batch.pages.push_back({page, page});
    for (std::int64_t i = 0; i < 6; ++i) {
      batch.q_positions.push_back(i);
      for (std::int64_t h = 0; h < 4; ++h) {
        for (std::int64_t d = 0; d < 8; ++d) packed.set(query.at(b, h, i, d), b * 6 + i, h, d);
      }
    }
  }
  const MaskMod causal = mods::causal_upper_left();
  AttentionOptions attention{.mask = c.paged.get_mask_mod(causal, kv_lens),
                             .score = c.paged.get_score_mod(options.score_mod, kv_lens)};
  if (hide_by_score) {
    attention.mask = {};
    attention.score = c.paged.get_score_mod(
        [&](const Expr& s, const Expr& b, const Expr& h, const Expr& q, const Expr& kv) {
          return where(causal(b, h, q, kv), options.score_mod(s, b, h, q, kv), kMasked);
        },
        kv_lens);
  }
  AttentionPlan plan({4, 2, 8, 8, kPage}, batch, attention);
  const auto as_pool = [](OwnedTensor& cache) {
    return ConstTensorView(cache.view().data, Dtype::kFloat32, {kPages, 2, kPage, 8},
                           {kPage * 8, kPages * kPage * 8, 8, 1});
  };
  ThreadPool threads(1);
  plan.attend_partial(packed.view(), {as_pool(c.k_cache), as_pool(c.v_cache)},
                      {o.view(), lse.view()}, threads);
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int64_t h = 0; h < 4; ++h) {
      for (std::int64_t i = 0; i < 6; ++i) {
        EXPECT_NEAR(lse.at(b * 6 + i, h), direct.lse.at(b, h, i), kTolerance * 10);
        for (std::int64_t d = 0; d < 8; ++d) {
          EXPECT_NEAR(o.at(b * 6 + i, h, d), direct.out.at(b, h, i, d), kTolerance);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(PagedMods, PagedModsOverTheFlatCache, testing::Bool(),
                         [](const auto& param) { return param.param ? "ByScore" : "ByMask"; });

// ---- convert_logical_block_mask ----

// The pages of a converted row are those of the logical blocks, in logical order.
void expect_converted(const PagedCase& c, const BlockMask& mask, const LocalBlockMask& local,
                      const std::vector<int>& rows, const std::vector<std::int64_t>& kv_lens) {
  ASSERT_EQ(local.batch(), std::ssize(rows));
  for (std::int64_t b = 0; b < local.batch(); ++b) {
    const std::span<const PageId> pages = c.paged.pages(rows[static_cast<std::size_t>(b)]);
    const std::int64_t length =
        kv_lens.empty() ? std::ssize(pages) * kPage : kv_lens[static_cast<std::size_t>(b)];
    for (std::int64_t h = 0; h < local.heads(); ++h) {
      for (std::int64_t q = 0; q < local.q_blocks(); ++q) {
        const BlockRowView logical = mask.row(b, h, q);
        std::vector<LocalBlock> expected;
        for (std::int32_t block = 0; block * kPage < length; ++block) {
          const bool full = std::ranges::count(logical.full, block) > 0;
          if (full || std::ranges::count(logical.partial, block) > 0) {
            expected.push_back({pages[static_cast<std::size_t>(block)].index(), block, full});
          }
        }
        EXPECT_TRUE(std::ranges::equal(local.row(b, h, q), expected));
      }
    }
  }
}

TEST(PagedMods, ConvertLogicalBlockMask) {
  const PagedCase c = interleaved();
  const MaskMod per_head([](auto b, auto h, auto q, auto kv) { return q + 3 * h + b >= kv; });
  const BlockMask mask = BlockMask::create(
      per_head,
      {.batch = 3, .heads = 4, .q_len = 10, .kv_len = 17, .q_block = 3, .kv_block = kPage});
  expect_converted(c, mask, c.paged.convert_logical_block_mask(mask), {0, 1, 2}, {});
  expect_converted(c, mask, c.paged.convert_logical_block_mask(mask, std::vector{2, 2, 0}),
                   {2, 2, 0}, {});
  const std::vector<std::int64_t> kv_lens{5, 11, 0};
  expect_converted(c, mask, c.paged.convert_logical_block_mask(mask, {}, kv_lens), {0, 1, 2},
                   kv_lens);
  // One batch row stands for all rows of the call.
  const BlockMask one = BlockMask::create(
      mods::causal(), {.q_len = 10, .kv_len = 17, .q_block = 3, .kv_block = kPage});
  expect_converted(c, one, c.paged.convert_logical_block_mask(one, std::vector{1, 0}), {1, 0}, {});
}

TEST(PagedMods, ConvertErrors) {
  const PagedCase c = interleaved();
  const BlockMask wrong_size = BlockMask::create(
      mods::causal(), {.batch = 3, .q_len = 8, .kv_len = 16, .q_block = 8, .kv_block = 8});
  EXPECT_THROW(c.paged.convert_logical_block_mask(wrong_size), InvalidArgument);
  const BlockMask mask = BlockMask::create(
      mods::causal(), {.batch = 3, .q_len = 8, .kv_len = 16, .q_block = 8, .kv_block = kPage});
  EXPECT_THROW(c.paged.convert_logical_block_mask(mask, std::vector{0, 1}), InvalidArgument);
  EXPECT_THROW(c.paged.convert_logical_block_mask(mask, std::vector{0, 1, 3}), InvalidArgument);
  EXPECT_THROW(c.paged.convert_logical_block_mask(mask, {}, std::vector<std::int64_t>{1}),
               InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
