// The prefixes of pages that are read once for several sequences. attend_prefixes_test.cpp has the
// results.
#include <gtest/gtest.h>

#include "kernels/cpu/plan/work_blocks.hpp"

namespace kvmesh::test {
namespace {

/// Decode of `count` sequences of `shared` pages in common and `own` others.
class Forks {
 public:
  Forks(std::int32_t count, std::int32_t shared, std::int32_t own) : tables_(as_size(count)) {
    for (std::int32_t s = 0; s < count; ++s) {
      std::vector<LocalPage>& table = tables_[as_size(s)];
      for (std::int32_t i = 0; i < shared + own; ++i) {
        table.push_back({i < shared ? i : shared + s * own + i, i});
      }
      sequences.push_back({.queries = 1, .kv_len = 16 * std::ssize(table), .pages = table});
    }
  }

  std::vector<AttendSequence> sequences;

 private:
  static std::size_t as_size(std::int32_t value) { return static_cast<std::size_t>(value); }
  std::vector<std::vector<LocalPage>> tables_;
};

constexpr SharedPrefixRules kAnyPrefix{.page_size = 16, .most_queries = 3, .least_saved_tokens = 1};

// 32 sequences of 8192 shared and 256 own tokens, 64 query heads of 8 kv heads.
TEST(AttendShared, ReadsALongPrefixOnceForManySequences) {
  const AttentionShape shape{.q_heads = 64, .kv_heads = 8, .k_dim = 8, .v_dim = 8, .page_size = 16};
  const Forks forks(32, 512, 16);
  const SharedPrefixRules rules = shared_prefix_rules(shape);
  const auto visited = [&](const MaskMod& mask, std::span<const SharedPrefix> shared) {
    WorkBlocks work;
    plan_work_blocks(shape, {forks.sequences, {}, shared, rules}, {.mask = mask}, work);
    return work.tiles.visited;
  };
  const auto shared = find_shared_prefixes(forks.sequences, rules);
  ASSERT_EQ(shared.size(), 1u);
  EXPECT_EQ(shared[0].pages, 512);
  EXPECT_GE(visited(mods::causal(), {}), 10 * visited(mods::causal(), shared));
  // A window hides the first pages, and a head of its own mask sees others.
  const MaskMod window = mods::sliding_window(4096);
  EXPECT_EQ(visited(window, {}), visited(window, shared));
  const MaskMod heads([](auto, auto h, auto, auto kv) { return kv >= h; });
  EXPECT_EQ(visited(heads, {}), visited(heads, shared));
}

// The lists of a block mask are of one sequence's queries, so no page of them is read for several.
TEST(AttendShared, ReadsNoPrefixForSequencesOfABlockMask) {
  const AttentionShape shape{.q_heads = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .page_size = 16};
  const Forks forks(4, 64, 1);
  const SharedPrefixRules rules = shared_prefix_rules(shape);
  const auto shared = find_shared_prefixes(forks.sequences, rules);
  ASSERT_EQ(shared.size(), 1u);
  LocalBlockMask mask(4, 1, 1, 1);
  for (std::int32_t s = 0; s < 4; ++s) {
    const LocalBlock shared_page{s, s, true};
    mask.add_row({&shared_page, 1});
  }
  WorkBlocks work;
  plan_work_blocks(shape, {forks.sequences, {}, shared, rules}, {.mask = {}, .block_mask = &mask},
                   work);
  EXPECT_TRUE(work.shared.blocks.empty());
  EXPECT_EQ(work.tiles.visited, 4);
}

// The same on a GPU: blocks of 128 rows, of 16 sequences with 8 rows each.
TEST(SharedBlocks, ReadATenthOfALongPrefix) {
  const Forks forks(32, 512, 16);
  const auto prefixes = find_shared_prefixes(forks.sequences, kAnyPrefix);
  SharedBlocks shared;
  shared.set({forks.sequences, {}, prefixes, kAnyPrefix}, mods::causal().graph(), 16);
  ASSERT_EQ(shared.blocks.size(), 2u);
  std::int64_t read = 0, each = 0;
  for (const SharedBlock& block : shared.blocks) read += block.pages;
  for (std::size_t s = 0; s < forks.sequences.size(); ++s) {
    each += std::ssize(forks.sequences[s].pages);
    read += std::ssize(forks.sequences[s].pages) - shared.part(s).pages;
  }
  EXPECT_GE(each, 10 * read);
}

TEST(SharedBlocks, HaveWholeSequences) {
  Forks forks(5, 4, 1);
  for (std::size_t s = 0; s < 5; ++s) {
    forks.sequences[s].queries = static_cast<std::int64_t>(s % 2 + 1);
  }
  const auto prefixes = find_shared_prefixes(forks.sequences, kAnyPrefix);
  SharedBlocks shared;
  shared.set({forks.sequences, {}, prefixes, kAnyPrefix}, mods::causal().graph(), 4);
  ASSERT_EQ(shared.blocks.size(), 2u);
  EXPECT_EQ(shared.blocks[0].token_end, 4);  // tokens 0, 1, 2 and 3 of sequences 0, 1, 1 and 2
  EXPECT_EQ(shared.blocks[1].tokens(), 3);
  EXPECT_EQ(shared.tokens[6].token, 6);
  EXPECT_EQ(shared.tokens[6].sequence, 4);
  EXPECT_EQ(shared.part(4).block, 1);
  EXPECT_EQ(shared.part(4).token, 2);
  EXPECT_EQ(shared.part(2).token, 3);
  shared.set({forks.sequences, {}, {}, kAnyPrefix}, mods::causal().graph(), 4);
  EXPECT_EQ(shared.part(4).block, -1);
}

// The step writes to them.
TEST(SharedPrefixes, LeaveOutPagesOfAppendedTokens) {
  Forks forks(3, 4, 0);
  forks.sequences[1].appended = 17;
  const auto found = find_shared_prefixes(forks.sequences, kAnyPrefix);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].pages, 2);
}

// A sequence of which the step computes nothing saves nothing.
TEST(SharedPrefixes, NeedTwoSequencesWithQueries) {
  Forks forks(2, 4, 1);
  EXPECT_EQ(find_shared_prefixes(forks.sequences, kAnyPrefix).size(), 1u);
  forks.sequences[1].queries = 0;
  EXPECT_TRUE(find_shared_prefixes(forks.sequences, kAnyPrefix).empty());
}

// A plan takes the level of a tree that saves most: a short prefix of all, long ones of some.
TEST(SharedPrefixes, TakeTheLevelThatSavesMost) {
  const auto tree = [](std::int32_t all, std::int32_t part) {
    std::vector<std::vector<LocalPage>> tables(8);
    for (std::int32_t s = 0; s < 8; ++s) {
      for (std::int32_t i = 0; i < all + part + 1; ++i) {
        const std::int32_t page = i < all ? i : i < all + part ? 1000 * (s / 4 + 1) + i : 5000 + s;
        tables[static_cast<std::size_t>(s)].push_back({page, i});
      }
    }
    std::vector<AttendSequence> sequences;
    for (const auto& table : tables) {
      sequences.push_back({.queries = 1, .kv_len = 16 * std::ssize(table), .pages = table});
    }
    return find_shared_prefixes(sequences,
                                {.page_size = 16, .most_queries = 1, .least_saved_tokens = 1});
  };
  EXPECT_EQ(tree(100, 5).size(), 1u);
  const auto parts = tree(5, 100);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].pages, 105);
  EXPECT_EQ(parts[1].sequences, (std::vector<std::int32_t>{4, 5, 6, 7}));
}

// A page that one of the sequences has only in part is no page of the prefix.
TEST(SharedPrefixes, EndWhereASequenceEnds) {
  const std::vector<LocalPage> pages{{3, 0}, {4, 1}, {5, 2}};
  const AttendSequence sequences[] = {{.queries = 1, .kv_len = 48, .pages = pages},
                                      {.queries = 1, .kv_len = 40, .pages = pages},
                                      {.queries = 2, .kv_len = 48, .pages = pages}};
  const auto found = find_shared_prefixes(
      sequences, {.page_size = 16, .most_queries = 1, .least_saved_tokens = 1});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].pages, 2);
  EXPECT_EQ(found[0].sequences, (std::vector<std::int32_t>{0, 1}));
  EXPECT_TRUE(find_shared_prefixes(sequences,
                                   {.page_size = 16, .most_queries = 1, .least_saved_tokens = 33})
                  .empty());
}

}  // namespace
}  // namespace kvmesh::test
