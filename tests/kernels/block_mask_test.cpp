// Block masks against brute force, and their conversion to the pages of 1 to 4 ranks.
#include "kvmesh/block_mask.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "kvmesh/error.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh {
namespace {

using Blocks = std::vector<std::int32_t>;

BlockRow brute_force_row(const MaskMod& mask, const BlockMaskShape& shape, std::int64_t b,
                         std::int64_t h, std::int64_t q_block) {
  const std::int32_t start = shape.q_start.empty() ? 0 : shape.q_start[std::size_t(b)];
  BlockRow row;
  for (std::int64_t block = 0; block * shape.kv_block < shape.kv_len; ++block) {
    bool visible = false;
    bool hidden = false;
    for (std::int64_t i = q_block * shape.q_block;
         i < std::min<std::int64_t>((q_block + 1) * shape.q_block, shape.q_len); ++i) {
      for (std::int64_t j = block * shape.kv_block;
           j < std::min<std::int64_t>((block + 1) * shape.kv_block, shape.kv_len); ++j) {
        const bool sees =
            mask(std::int32_t(b), std::int32_t(h), std::int32_t(start + i), std::int32_t(j));
        (sees ? visible : hidden) = true;
      }
    }
    if (visible) (hidden ? row.partial : row.full).push_back(static_cast<std::int32_t>(block));
  }
  return row;
}

Blocks list(std::span<const std::int32_t> blocks) { return {blocks.begin(), blocks.end()}; }

void expect_exact(const MaskMod& mask_mod, const BlockMaskShape& shape) {
  const BlockMask mask = BlockMask::create(mask_mod, shape);
  double visited = 0;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
        const BlockRow expected = brute_force_row(mask_mod, shape, b, h, q);
        ASSERT_EQ(list(mask.row(b, h, q).partial), expected.partial) << b << h << q;
        ASSERT_EQ(list(mask.row(b, h, q).full), expected.full) << b << h << q;
        visited += static_cast<double>(expected.partial.size() + expected.full.size());
      }
    }
  }
  const auto tiles =
      static_cast<double>(shape.batch * shape.heads * shape.q_blocks() * shape.kv_blocks());
  EXPECT_DOUBLE_EQ(mask.sparsity(), 1.0 - visited / tiles);
}

/// Rows and heads see different numbers of blocks.
std::vector<MaskMod> many_masks() {
  std::vector<std::int32_t> doc;
  for (int i = 0; i < 300; ++i) doc.push_back(i / 37);
  const Buffer<std::int32_t> reach({3, 40, 120});
  const MaskMod by_head([](auto, auto h, auto q, auto kv) { return kv <= q && kv % (h + 1) == 0; });
  const MaskMod by_row([reach](auto b, auto h, auto, auto kv) { return kv < reach[b] * (h + 1); });
  const MaskMod nothing([](auto, auto, auto, auto) { return false; });
  return {mods::no_mask(),
          mods::causal(),
          mods::sliding_window(20),
          mods::prefix_lm(50),
          mods::documents(Buffer<std::int32_t>(doc)),
          mods::causal() && mods::documents(Buffer<std::int32_t>(doc)),
          mods::sliding_window(9) || mods::prefix_lm(4),
          by_head,
          by_row,
          nothing};
}

TEST(BlockMask, IsExactForManyMasks) {
  for (const MaskMod& mask : many_masks()) {
    SCOPED_TRACE(mask.to_string());
    expect_exact(
        mask, {.batch = 3, .heads = 2, .q_len = 100, .kv_len = 130, .q_block = 32, .kv_block = 16});
    expect_exact(mask, {.batch = 3,
                        .heads = 1,
                        .q_len = 5,
                        .kv_len = 131,
                        .q_block = 4,
                        .kv_block = 16,
                        .q_start = {126, 0, 60}});
    expect_exact(
        mask, {.batch = 1, .heads = 2, .q_len = 64, .kv_len = 64, .q_block = 64, .kv_block = 64});
    expect_exact(mask, {.batch = 2,
                        .heads = 2,
                        .q_len = 7,
                        .kv_len = 9,
                        .q_block = 1,
                        .kv_block = 1,
                        .q_start = {2, 2}});
  }
}

TEST(BlockMask, IsExactForRandomMasks) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int round = 0; round < 150; ++round) {
    const MaskMod mask = test::random_mask(random, true);
    SCOPED_TRACE(mask.to_string());
    BlockMaskShape shape{.batch = random.integer(1, 3), .heads = random.integer(1, 3)};
    shape.q_len = random.integer(1, 30);
    shape.kv_len = random.integer(1, 50);
    shape.q_block = random.integer(1, 12);
    shape.kv_block = random.integer(1, 12);
    if (random.chance(0.5)) {
      for (std::int64_t b = 0; b < shape.batch; ++b) shape.q_start.push_back(random.integer(0, 9));
    }
    expect_exact(mask, shape);
  }
}

TEST(BlockMask, RowsAndHeadsMayDiffer) {
  const MaskMod mask([](auto b, auto h, auto, auto kv) { return kv < 16 * (b + 1) + 8 * h; });
  const BlockMask blocks = BlockMask::create(
      mask, {.batch = 2, .heads = 2, .q_len = 1, .kv_len = 64, .q_block = 1, .kv_block = 16});
  EXPECT_EQ(list(blocks.row(0, 0, 0).full), (Blocks{0}));
  EXPECT_EQ(list(blocks.row(0, 0, 0).partial), (Blocks{}));
  EXPECT_EQ(list(blocks.row(1, 1, 0).full), (Blocks{0, 1}));
  EXPECT_EQ(list(blocks.row(1, 1, 0).partial), (Blocks{2}));
}

TEST(BlockMask, ShortLastBlockCountsExistingPairsOnly) {
  const BlockMask blocks =
      BlockMask::create(mods::no_mask(), {.q_len = 3, .kv_len = 17, .q_block = 2, .kv_block = 16});
  EXPECT_EQ(list(blocks.row(0, 0, 1).full), (Blocks{0, 1}));
}

TEST(BlockMask, BroadcastsASingleRowAndHead) {
  const BlockMask blocks =
      BlockMask::create(mods::causal(), {.q_len = 64, .kv_len = 64, .q_block = 16, .kv_block = 16});
  EXPECT_EQ(list(blocks.row(5, 7, 1).full), (Blocks{0}));
  EXPECT_EQ(list(blocks.row(5, 7, 1).partial), (Blocks{1}));
  EXPECT_THROW((void)blocks.row(0, 0, 4), InvalidArgument);
  EXPECT_THROW((void)blocks.row(0, 0, -1), InvalidArgument);
}

TEST(BlockMask, Picture) {
  const BlockMask blocks =
      BlockMask::create(mods::causal(), {.q_len = 48, .kv_len = 64, .q_block = 16, .kv_block = 16});
  EXPECT_EQ(blocks.to_string(),
            "block mask 1 x 1 x 48 x 64, blocks 16 x 16, 50.0 % empty\n"
            "+   \n"
            "#+  \n"
            "##+ \n");
}

TEST(BlockMask, RejectsInvalidShapes) {
  const auto create = [](const BlockMaskShape& shape) { BlockMask::create(mods::causal(), shape); };
  EXPECT_THROW(create({.batch = 0, .q_len = 1, .kv_len = 1}), InvalidArgument);
  EXPECT_THROW(create({.heads = 0, .q_len = 1, .kv_len = 1}), InvalidArgument);
  EXPECT_THROW(create({.q_len = 0, .kv_len = 1}), InvalidArgument);
  EXPECT_THROW(create({.q_len = 1, .kv_len = 0}), InvalidArgument);
  EXPECT_THROW(create({.q_len = 1, .kv_len = 1, .q_block = 0}), InvalidArgument);
  EXPECT_THROW(create({.q_len = 1, .kv_len = 1, .kv_block = -1}), InvalidArgument);
  EXPECT_THROW(create({.q_len = 1, .kv_len = 1, .q_start = {0, 0}}), InvalidArgument);
  EXPECT_THROW(create({.q_len = 1, .kv_len = 1, .q_start = {-1}}), InvalidArgument);
  EXPECT_THROW(create({.q_len = 1, .kv_len = std::int64_t{1} << 31}), InvalidArgument);
}

TEST(BlockMask, FromListsSortsAndValidates) {
  const BlockMaskShape shape{.q_len = 32, .kv_len = 80, .q_block = 16, .kv_block = 16};
  const std::vector<BlockRow> rows{{{4, 0}, {2}}, {{}, {3, 1}}};
  const BlockMask mask = BlockMask::from_lists(shape, rows, mods::causal());
  EXPECT_EQ(list(mask.row(0, 0, 0).partial), (Blocks{0, 4}));
  EXPECT_EQ(list(mask.row(0, 0, 0).full), (Blocks{2}));
  EXPECT_EQ(list(mask.row(0, 0, 1).full), (Blocks{1, 3}));
  EXPECT_FALSE(mask.mask_mod().is_identity());

  const auto from = [&](std::vector<BlockRow> given) { BlockMask::from_lists(shape, given); };
  EXPECT_THROW(from({{{0}, {}}}), InvalidArgument) << "one row of two";
  EXPECT_THROW(from({{{5}, {}}, {}}), InvalidArgument) << "past the end";
  EXPECT_THROW(from({{{-1}, {}}, {}}), InvalidArgument);
  EXPECT_THROW(from({{{1, 1}, {}}, {}}), InvalidArgument) << "twice";
  EXPECT_THROW(from({{{1}, {1}}, {}}), InvalidArgument) << "partial and full";
}

/// Page tables of `lengths[b]` pages, spread over `ranks` at random, each page used once.
std::vector<std::vector<PageId>> random_tables(test::Random& random, int ranks,
                                               const std::vector<int>& lengths) {
  std::vector<std::int32_t> next(static_cast<std::size_t>(ranks), 100);
  std::vector<std::vector<PageId>> tables;
  for (int length : lengths) {
    std::vector<PageId> table;
    for (int i = 0; i < length; ++i) {
      const std::int32_t rank = random.integer(0, ranks - 1);
      table.emplace_back(PageRank{rank}, next[static_cast<std::size_t>(rank)]--);
    }
    tables.push_back(table);
  }
  return tables;
}

std::vector<std::span<const PageId>> spans(const std::vector<std::vector<PageId>>& tables) {
  return {tables.begin(), tables.end()};
}

/// Over the ranks, every visible block appears exactly once, on the rank that holds its page.
void expect_covered(const BlockMask& mask, const std::vector<std::vector<PageId>>& tables,
                    int ranks) {
  const BlockMaskShape& shape = mask.shape();
  std::vector<LocalBlockMask> local;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    local.push_back(convert_to_local(mask, spans(tables), shape.kv_block, PageRank{rank}));
    ASSERT_EQ(local.back().batch(), static_cast<std::int64_t>(tables.size()));
    ASSERT_EQ(local.back().q_block(), shape.q_block);
  }
  for (std::size_t b = 0; b < tables.size(); ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
        const auto row = std::int64_t(b);
        std::map<std::int32_t, bool> expected;  // logical block -> full
        for (std::int32_t block : mask.row(row, h, q).partial) expected[block] = false;
        for (std::int32_t block : mask.row(row, h, q).full) expected[block] = true;
        std::erase_if(expected, [&](auto& e) { return std::size_t(e.first) >= tables[b].size(); });
        for (std::int32_t rank = 0; rank < ranks; ++rank) {
          const auto blocks = local[std::size_t(rank)].row(row, h, q);
          ASSERT_TRUE(std::ranges::is_sorted(blocks, std::less{}, &LocalBlock::logical));
          for (const LocalBlock& block : blocks) {
            const auto found = expected.find(block.logical);
            ASSERT_NE(found, expected.end()) << "visited twice, or not to be visited";
            ASSERT_EQ(block.full, found->second);
            ASSERT_EQ(PageId(PageRank{rank}, block.page), tables[b][std::size_t(block.logical)]);
            expected.erase(found);
          }
        }
        ASSERT_TRUE(expected.empty()) << "a visible block that no rank visits";
      }
    }
  }
}

TEST(ConvertToLocal, CoversEachVisibleBlockOnceOverTheRanks) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int ranks = 1; ranks <= 4; ++ranks) {
    for (const MaskMod& mask_mod : many_masks()) {
      const BlockMask mask = BlockMask::create(
          mask_mod,
          {.batch = 3, .heads = 2, .q_len = 90, .kv_len = 130, .q_block = 32, .kv_block = 16});
      expect_covered(mask, random_tables(random, ranks, {9, 9, 9}), ranks);
      expect_covered(mask, random_tables(random, ranks, {4, 0, 12}), ranks);
    }
    const BlockMask shared =
        BlockMask::create(mods::causal(), {.q_len = 40, .kv_len = 40, .q_block = 8, .kv_block = 8});
    expect_covered(shared, random_tables(random, ranks, {5, 2, 5, 1}), ranks);
  }
}

TEST(ConvertToLocal, RefusesWhatDoesNotFit) {
  const BlockMask mask = BlockMask::create(
      mods::causal(), {.batch = 2, .q_len = 32, .kv_len = 32, .q_block = 16, .kv_block = 16});
  const std::vector<std::vector<PageId>> two{{PageId(PageRank{0}, 0), PageId(PageRank{0}, 1)},
                                             {PageId(PageRank{0}, 2), PageId()}};
  try {
    convert_to_local(mask, spans(two), 8, PageRank{0});
    ADD_FAILURE() << "a page size that is not the block size was taken";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(
        error.what(),
        "a block mask with kv blocks of 16 cannot be laid over pages of 8: make them equal");
  }
  EXPECT_THROW(convert_to_local(mask, spans(two), 16, PageRank{0}), InvalidArgument) << "no page 1";
  const std::vector<std::vector<PageId>> three(3, two[0]);
  EXPECT_THROW(convert_to_local(mask, spans(three), 16, PageRank{0}), InvalidArgument);
  const std::vector<std::vector<PageId>> good{two[0], two[0]};
  const LocalBlockMask local = convert_to_local(mask, spans(good), 16, PageRank{0});
  EXPECT_THROW((void)local.row(2, 0, 0), InvalidArgument);
  EXPECT_THROW((void)local.row(0, 0, 2), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh
