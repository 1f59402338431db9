// The class of every page that a plan visits or leaves out, against the mask evaluated for every
// query and key.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/cpu/plan/work_blocks.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int32_t kLongest = 160;

/// One mask of those that models use, or two joined.
MaskMod random_pieces(Random& random, int depth) {
  const std::int32_t n = random.integer(1, kLongest);
  if (depth > 0) {
    const MaskMod a = random_pieces(random, depth - 1), b = random_pieces(random, depth - 1);
    const int join = random.integer(0, 4);
    return join == 0 ? a || b : join == 1 ? a && !b : a && b;
  }
  switch (random.integer(0, 9)) {
    case 0:
      return mods::sliding_window(n);
    case 1:
      return mods::prefix_lm(n);
    case 2:
      return mods::prefix_lm(Buffer<std::int32_t>({n, n / 2, 0}));
    case 3: {
      std::vector<std::int32_t> ids;
      for (std::int32_t i = 0, id = 0; i < kLongest; ++i) ids.push_back(id += random.chance(0.05));
      return mods::documents(Buffer<std::int32_t>(ids));
    }
    case 4:
      return mods::causal_upper_left(Buffer<std::int32_t>({n, n / 2, 0}));
    case 5:  // chunks
      return MaskMod([n](auto, auto, auto q, auto kv) { return q / n == kv / n; });
    case 6:  // every n-th key
      return MaskMod([n](auto, auto, auto q, auto kv) { return (q - kv) % n == 0; });
    case 7:  // each head has a window of its own
      return MaskMod([n](auto, auto h, auto q, auto kv) { return q - kv < n * (h % 3); });
    case 8:  // the first tokens
      return MaskMod([n](auto, auto, auto, auto kv) { return kv < n; });
    default:
      return mods::causal();
  }
}

struct Batch {
  std::vector<std::vector<LocalPage>> pages;
  std::vector<AttendSequence> sequences;
  std::vector<std::int64_t> q_positions;
};

/// For each page, whether this rank has it: a rank among several may have it, or none.
Batch random_batch(Random& random, int page_size) {
  Batch batch;
  const bool explicit_positions = random.chance(0.4);
  for (int s = random.integer(1, 3); s > 0; --s) {
    const std::int64_t length = random.integer(1, kLongest);
    std::vector<LocalPage>& pages = batch.pages.emplace_back();
    const double held = random.chance(0.3) ? 1.0 : random.real(0.05f, 0.9f);
    for (std::int32_t i = 0; i * page_size < length; ++i) {
      if (random.chance(held)) pages.push_back({random.integer(0, 99), i});
    }
    const std::int64_t queries =
        random.integer(0, static_cast<std::int32_t>(std::min<std::int64_t>(length, 20)));
    for (std::int64_t q = 0; explicit_positions && q < queries; ++q) {
      batch.q_positions.push_back(random.integer(0, kLongest - 1));
    }
    batch.sequences.push_back({.queries = queries, .kv_len = length});
  }
  for (std::size_t s = 0; s < batch.pages.size(); ++s) batch.sequences[s].pages = batch.pages[s];
  return batch;
}

/// The plan's class of (block, page, head of the group).
using Classes = std::map<std::tuple<std::size_t, std::int32_t, int>, TileClass>;

Classes planned_classes(const WorkBlocks& work, int group) {
  Classes classes;
  for (std::size_t b = 0; b < work.blocks.size(); ++b) {
    const WorkBlock& block = work.blocks[b];
    std::int64_t visits = 0;
    for (std::int32_t r = block.range_begin; r < block.range_end; ++r) {
      const PageRange& range = work.ranges[static_cast<std::size_t>(r)];
      EXPECT_EQ(range.first_visit, block.visit_begin + visits);
      visits += range.count;
      for (std::int32_t i = 0; i < range.count; ++i) {
        for (int g = 0; g < group; ++g) {
          classes[{b, range.pages[i].logical, g}] =
              range.masked ? TileClass::kPartial : TileClass::kFull;
        }
      }
    }
    EXPECT_EQ(block.visit_end - block.visit_begin, visits);
  }
  return classes;
}

TileClass evaluate(const MaskMod& mask, const WorkBlocks& work, const WorkBlock& block, int head,
                   std::int64_t begin, std::int64_t end) {
  bool visible = false, hidden = false;
  for (std::int64_t q = block.q_begin; q < block.q_end; ++q) {
    for (std::int64_t kv = begin; kv < end; ++kv) {
      const std::int32_t position = work.positions[static_cast<std::size_t>(q)];
      (mask(block.sequence, head, position, static_cast<std::int32_t>(kv)) ? visible : hidden) =
          true;
    }
  }
  return !visible ? TileClass::kEmpty : hidden ? TileClass::kPartial : TileClass::kFull;
}

// A plan may mask a page that needs none only where the heads of a group differ. It may never leave
// out a page that some row sees, nor leave the mask off one that some row sees in part.
void check(const MaskMod& mask, const AttentionShape& shape, int first_head, const Batch& batch,
           const WorkBlocks& work) {
  const int group = shape.q_heads / shape.kv_heads;
  const Classes planned = planned_classes(work, group);
  for (std::size_t b = 0; b < work.blocks.size(); ++b) {
    const WorkBlock& block = work.blocks[b];
    const AttendSequence& sequence = batch.sequences[static_cast<std::size_t>(block.sequence)];
    for (const LocalPage& page : sequence.pages) {
      const std::int64_t begin = std::int64_t{page.logical} * shape.page_size;
      const std::int64_t end = std::min(sequence.kv_len, begin + shape.page_size);
      std::vector<TileClass> exact;
      for (int g = 0; g < group; ++g) {
        exact.push_back(
            evaluate(mask, work, block, first_head + block.kv_head * group + g, begin, end));
      }
      const bool is_shared = std::ranges::count(exact, exact[0]) == group;
      const TileClass expected = is_shared ? exact[0] : TileClass::kPartial;
      const auto at = planned.find({b, page.logical, 0});
      const TileClass found = at == planned.end() ? TileClass::kEmpty : at->second;
      ASSERT_EQ(static_cast<int>(found), static_cast<int>(expected))
          << "block " << b << ", page " << page.logical << " of " << shape.page_size << "\n"
          << mask.to_string();
    }
  }
}

TEST(AttendClasses, OfEveryPageAreThoseOfItsQueriesAndKeys) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  WorkBlocks work;  // a plan leaves nothing to the next
  for (int round = 0; round < 2000 && !testing::Test::HasFatalFailure(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const int kv_heads = random.integer(1, 2);
    const AttentionShape shape{.q_heads = kv_heads * random.integer(1, 3),
                               .kv_heads = kv_heads,
                               .k_dim = 8,
                               .v_dim = 8,
                               .page_size = random.integer(1, 20)};
    const MaskMod mask = random_pieces(random, random.integer(0, 2));
    const int first_head = random.integer(0, 3);
    const Batch batch = random_batch(random, shape.page_size);
    plan_work_blocks(shape, {batch.sequences, batch.q_positions},
                     {.mask = mask, .first_head = first_head}, work);
    check(mask, shape, first_head, batch, work);
  }
}

TEST(AttendClasses, ByABandAreThoseOfTheMask) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  WorkBlocks work;
  for (int round = 0; round < 2000 && !testing::Test::HasFatalFailure(); ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const AttentionShape shape{
        .q_heads = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .page_size = random.integer(1, 20)};
    const std::int32_t begin = random.integer(-40, 40), end = begin + random.integer(0, 60);
    const MaskMod mask(
        [=](auto, auto, auto q, auto kv) { return q - kv >= begin && q - kv < end; });
    const std::optional<MaskBand> band = band_of(mask.graph());
    ASSERT_TRUE(band.has_value());
    Batch batch = random_batch(random, shape.page_size);
    // The mask given here has no pages at all: the band alone counts.
    plan_work_blocks(shape, {batch.sequences, {}}, {.mask = !mods::no_mask()}, work, band);
    check(mask, shape, 0, batch, work);
    plan_work_blocks(shape, {batch.sequences, batch.q_positions}, {.mask = mask}, work, band);
    check(mask, shape, 0, batch, work);
  }
}

}  // namespace
}  // namespace kvmesh::test
