// The work lists of a step: ranges of pages, in memory in proportion to the prompt.
#include "kernels/cpu/plan/work_blocks.hpp"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

namespace kvmesh::test {
namespace {

constexpr AttentionShape kTaskShape{
    .q_heads = 8, .kv_heads = 1, .k_dim = 64, .v_dim = 64, .page_size = 16};

std::vector<LocalPage> pages_of(std::int64_t tokens) {
  std::vector<LocalPage> pages(static_cast<std::size_t>(tokens / kTaskShape.page_size));
  for (std::size_t i = 0; i < pages.size(); ++i) {
    pages[i] = {static_cast<std::int32_t>(pages.size() - i), static_cast<std::int32_t>(i)};
  }
  return pages;
}

WorkBlocks prompt(std::int64_t tokens, const MaskMod& mask) {
  const std::vector<LocalPage> pages = pages_of(tokens);
  const AttendSequence sequence{.queries = tokens, .kv_len = tokens, .pages = pages};
  WorkBlocks work;
  plan_work_blocks(kTaskShape, {{&sequence, 1}, {}}, {.mask = mask}, work);
  return work;
}

TEST(WorkBlocks, MemoryIsProportionalToThePrompt) {
  for (const MaskMod& mask : {mods::causal(), mods::sliding_window(500), MaskMod{}}) {
    const WorkBlocks small = prompt(8192, mask), large = prompt(32768, mask);
    EXPECT_LT(large.size_bytes(), 5 * small.size_bytes());
    EXPECT_LT(large.size_bytes(), 128 * 32768) << "lists of pages would be 67 MB";
    const auto most = 4 * std::ssize(large.blocks);
    EXPECT_LT(std::ssize(large.ranges), most);
  }
  const WorkBlocks causal = prompt(8192, mods::causal());
  // Block b has the queries [8 b, 8 b + 8) and sees the pages up to theirs, which alone is masked.
  for (std::size_t b = 0; b < causal.blocks.size(); ++b) {
    const WorkBlock& block = causal.blocks[b];
    ASSERT_EQ(block.visit_end - block.visit_begin, static_cast<std::int64_t>(b) / 2 + 1);
  }
  EXPECT_EQ(causal.tiles.masked, std::ssize(causal.blocks));
}

TEST(WorkBlocks, ReusesMemoryAndCopiesNoPage) {
  const std::vector<LocalPage> pages = pages_of(4096);
  const AttendSequence decode{.queries = 1, .kv_len = 4096, .pages = pages};
  WorkBlocks work;
  plan_work_blocks(kTaskShape, {{&decode, 1}, {}}, {.mask = mods::causal()}, work);
  const std::int64_t bytes = work.size_bytes();
  EXPECT_LT(bytes, 1024);
  ASSERT_FALSE(work.ranges.empty());
  EXPECT_EQ(work.ranges[0].pages, pages.data());
  const PageRange* memory = work.ranges.data();
  plan_work_blocks(kTaskShape, {{&decode, 1}, {}}, {.mask = mods::causal()}, work);
  EXPECT_EQ(work.size_bytes(), bytes);
  EXPECT_EQ(work.ranges.data(), memory);
}

// Decode of two short sequences and a long one, by three kv heads.
TEST(WorkBlocks, TasksAndMergesAreEachHeadsOfEachBlock) {
  constexpr AttentionShape kHeads{
      .q_heads = 6, .kv_heads = 3, .k_dim = 64, .v_dim = 64, .page_size = 16};
  const std::vector<LocalPage> pages = pages_of(5000);
  std::vector<AttendSequence> sequences;
  for (const std::int64_t length : {64, 4992, 160}) {
    sequences.push_back({.queries = 1,
                         .kv_len = length,
                         .pages = std::span(pages).first(static_cast<std::size_t>(length / 16))});
  }
  WorkBlocks work;
  plan_work_blocks(kHeads, {sequences, {}}, {.mask = mods::causal()}, work);
  ASSERT_EQ(work.blocks.size(), 3u);
  std::vector<std::array<std::int32_t, 3>> tasks, expected;  // sequence, head, split
  for (std::int64_t i = 0; i < work.tasks; ++i) {
    const WorkTask task = work.task(i);
    tasks.push_back({task.block.sequence, task.block.kv_head, task.split});
  }
  for (std::int32_t s = 0; s < 3; ++s) {
    for (std::int32_t head = 0; head < 3; ++head) {
      for (std::int32_t split = 0; split < (s == 1 ? 5 : 1); ++split) {
        expected.push_back({s, head, split});
      }
    }
  }
  EXPECT_EQ(tasks, expected);
  ASSERT_EQ(work.merges, 3);
  EXPECT_EQ(work.workspace_rows, 3 * 5 * 2);
  for (std::int32_t head = 0; head < 3; ++head) {
    const WorkBlock block = work.merged_block(head);
    EXPECT_EQ(block.sequence, 1);
    EXPECT_EQ(block.kv_head, head);
    EXPECT_EQ(block.workspace_row, head * 5 * 2);
  }
}

// Blocks of one q block share the visits that the block mask lists.
TEST(WorkBlocks, ListedVisitsAreMadeOncePerQBlock) {
  const std::int64_t tokens = 1024;
  const BlockMask mask = BlockMask::create(
      mods::causal(), {.q_len = tokens, .kv_len = tokens, .q_block = 128, .kv_block = 16});
  std::vector<PageId> table;
  for (int i = 0; i < tokens / 16; ++i) table.push_back(PageId(PageRank{0}, i));
  const std::span<const PageId> tables[] = {table};
  const LocalBlockMask local = convert_to_local(mask, tables, 16, PageRank{0});
  std::vector<LocalPage> pages(table.size());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    pages[i] = {static_cast<std::int32_t>(i), static_cast<std::int32_t>(i)};
  }
  const AttendSequence sequence{.queries = tokens, .kv_len = tokens, .pages = pages};
  WorkBlocks work;
  plan_work_blocks(kTaskShape, {{&sequence, 1}, {}}, {.mask = mods::causal(), .block_mask = &local},
                   work);
  EXPECT_LE(work.ranges.size(), 2u * 8u) << "full pages and those on the diagonal, of 8 q blocks";
  std::int64_t visited = 0;
  for (std::int64_t q = 0; q < 8; ++q) visited += 16 * std::ssize(local.row(0, 0, q));
  EXPECT_EQ(work.tiles.visited, visited);
}

}  // namespace
}  // namespace kvmesh::test
