// The tiles that the kernel reads, and those that it masks, in exact numbers.
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

// One kv head and one query head: a work block is 64 queries.
constexpr int kRowBlock = 64;
constexpr int kPage = 16;

CaseSpec square(std::int64_t length, const MaskMod& mask) {
  CaseSpec spec{.shape = {1, 1, 16, 16, kPage}};
  spec.sequences = {{.q_len = length, .kv_len = length}};
  spec.options.mask = mask;
  return spec;
}

// The tiles that must be read, from the mask's definition alone.
struct Expected {
  std::int64_t visited = 0, masked = 0;
  std::vector<std::int64_t> never_read;  // logical pages
};

Expected count(std::int64_t length, const MaskMod& mask) {
  Expected expected;
  for (std::int64_t page = 0; page < length / kPage; ++page) {
    bool read = false;
    for (std::int64_t block = 0; block < length / kRowBlock; ++block) {
      std::int64_t visible = 0;
      for (std::int64_t q = block * kRowBlock; q < (block + 1) * kRowBlock; ++q) {
        for (std::int64_t kv = page * kPage; kv < (page + 1) * kPage; ++kv) {
          visible += mask(0, 0, static_cast<std::int32_t>(q), static_cast<std::int32_t>(kv));
        }
      }
      expected.visited += visible > 0;
      expected.masked += visible > 0 && visible < kRowBlock * kPage;
      read |= visible > 0;
    }
    if (!read) expected.never_read.push_back(page);
  }
  return expected;
}

void expect_counted(const MaskMod& mask) {
  AttentionCase c(square(512, mask));
  const Expected expected = count(512, mask);
  for (std::int64_t page : expected.never_read) c.poison_page(0, page);
  const CaseResult result = c.run();
  EXPECT_EQ(result.tiles.visited, expected.visited);
  EXPECT_EQ(result.tiles.masked, expected.masked);
  EXPECT_TRUE(c.matches(result));
}

TEST(AttendTiles, NoMask) {
  AttentionCase c(square(512, mods::no_mask()));
  const TileCounts tiles = c.run().tiles;
  EXPECT_EQ(tiles.visited, 8 * 32);
  EXPECT_EQ(tiles.masked, 0);
}

TEST(AttendTiles, Causal) {
  expect_counted(mods::causal());
  // Row block i of 8 reads pages 0 .. 4i + 3, the last four in part.
  AttentionCase c(square(512, mods::causal()));
  const TileCounts tiles = c.run().tiles;
  EXPECT_EQ(tiles.visited, 4 * 8 * 9 / 2);
  EXPECT_EQ(tiles.masked, 4 * 8);
}

TEST(AttendTiles, SlidingWindow) {
  expect_counted(mods::sliding_window(1));
  expect_counted(mods::sliding_window(64));
  expect_counted(mods::sliding_window(100));
}

TEST(AttendTiles, Documents) {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 512; ++i) ids.push_back(i < 64 ? 0 : i < 128 ? 1 : i < 300 ? 2 : 3);
  expect_counted(mods::documents(Buffer<std::int32_t>(ids)));
  expect_counted(mods::mask_and(mods::causal(), mods::documents(Buffer<std::int32_t>(ids))));
}

TEST(AttendTiles, PrefixAndHoles) {
  expect_counted(mods::prefix_lm(48));
  expect_counted([](auto, auto, auto, auto kv) { return kv / 32 % 2 == 0; });
  expect_counted([](auto, auto, auto q, auto kv) { return q / 64 == 7 - kv / 64; });
  expect_counted([](auto, auto, auto, auto) { return false; });
}

// A decode step behind a window reads the window and nothing before it.
TEST(AttendTiles, DecodeReadsTheWindowOnly) {
  CaseSpec spec{.shape = {8, 2, 16, 16, kPage}};
  spec.sequences = {{.q_len = 1, .kv_len = 1000}};
  spec.options.mask = mods::sliding_window(40);
  AttentionCase c(spec);
  for (std::int64_t page = 0; page < 960 / kPage; ++page) c.poison_page(0, page);
  const CaseResult result = c.run();
  // Keys 960 .. 999 are pages 60, 61 and half of 62, visible to the end of the sequence.
  EXPECT_EQ(result.tiles.visited, 2 * 3);
  EXPECT_EQ(result.tiles.masked, 0);
  EXPECT_TRUE(c.matches(result));
}

// A decode step under a causal mask sees every key: nothing is masked.
TEST(AttendTiles, CausalDecodeMasksNothing) {
  CaseSpec spec{.shape = {8, 2, 16, 16, kPage}};
  spec.sequences = {{.q_len = 1, .kv_len = 1001}, {.q_len = 1, .kv_len = 7}};
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  const CaseResult result = c.run();
  EXPECT_EQ(result.tiles.visited, 2 * (63 + 1));
  EXPECT_EQ(result.tiles.masked, 0);
  EXPECT_TRUE(c.matches(result));
}

// Heads of different groups read different pages.
TEST(AttendTiles, EachGroupReadsItsOwn) {
  CaseSpec spec{.shape = {4, 2, 16, 16, kPage}};
  spec.sequences = {{.q_len = 1, .kv_len = 160}};
  // The first group sees one page, the second all ten.
  spec.options.mask = [](auto, auto h, auto, auto kv) { return h >= 2 || kv < 16; };
  AttentionCase c(spec);
  const CaseResult result = c.run();
  EXPECT_EQ(result.tiles.visited, 1 + 10);
  EXPECT_EQ(result.tiles.masked, 0);
  EXPECT_TRUE(c.matches(result));
}

}  // namespace
}  // namespace kvmesh::test
