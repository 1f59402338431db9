// Windows that give up pages: the numbers are those of float64 and of one rank, while freed pages
// are full of NaN, and sequences hold no more pages than their windows need.
#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {
namespace {

constexpr int kPageSize = 4, kPages = 36;
constexpr std::int64_t kWindow = 10;

/// Layer 0 sees all; layers 1 and 3 a window; layer 2 each position itself.
CacheOptions windows() {
  CacheOptions options = small_cache(kSmallShape);
  options.layers = 4;
  options.pages_per_rank = kPages;
  options.groups = {{.layers = {1, 3}, .kv_heads = 1, .k_dim = 8, .window = kWindow},
                    {.layers = {2}, .window = 1}};
  return options;
}

std::int64_t held(CheckedCache& cache, SequenceId sequence, int group) {
  const PageAllocator& allocator = cache.cache().allocator(group);
  return std::ssize(allocator.pages(sequence)) - allocator.released_pages(sequence);
}

template <class Ranks>
class Windows : public testing::Test {
 protected:
  using Place = OnCpu<Ranks>;
};
using Places = testing::Types<LoopbackRanks<1>, LoopbackRanks<3>>;
TYPED_TEST_SUITE(Windows, Places, RankNames);

TYPED_TEST(Windows, HoldWhatTheyNeedWhileSequencesGrow) {
  on_each_placement(place_of<typename TestFixture::Place>(), windows(), [](CheckedCache& cache) {
    const SequenceId sequence = cache.create();
    EXPECT_TRUE(cache.step({{sequence, 45, 3}}));
    EXPECT_EQ(held(cache, sequence, 1), 12) << "the step's own tokens may still be queries";
    for (int i = 0; i < 14; ++i) {
      EXPECT_TRUE(cache.step({{sequence, 1}}));
      const std::int64_t length = cache.allocator().length(sequence);
      const std::int64_t first = std::max<std::int64_t>(length - kWindow, 0) / kPageSize;
      EXPECT_EQ(held(cache, sequence, 0), (length + kPageSize - 1) / kPageSize);
      EXPECT_EQ(held(cache, sequence, 1), (length + kPageSize - 1) / kPageSize - first);
      EXPECT_EQ(held(cache, sequence, 2), 1);
    }
    // The pages are free: all of a group's together hold many more tokens than there is room for.
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(cache.step({{sequence, 20, 2}}));
    const std::int64_t pages = kPages * cache.cache().mesh().kv_parallel();
    EXPECT_EQ(cache.cache().allocator(2).free_pages(), pages - held(cache, sequence, 2));
  });
}

TYPED_TEST(Windows, KeepWhatAForkNeeds) {
  on_each_placement(place_of<typename TestFixture::Place>(), windows(), [](CheckedCache& cache) {
    const SequenceId parent = prompt(cache, 22);
    const SequenceId child = cache.fork(parent);
    const PageAllocator& allocator = cache.cache().allocator(1);
    const std::vector<PageId> shared(allocator.pages(parent).begin(),
                                     allocator.pages(parent).end());
    for (int i = 0; i < 6; ++i) EXPECT_TRUE(cache.step({{parent, 3}}));
    for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(allocator.reference_count(shared[i]), 1);
    EXPECT_TRUE(cache.step({{child, 0, 1}, {parent, 0, 1}}));
    for (int i = 0; i < 6; ++i) EXPECT_TRUE(cache.step({{child, 2}, {parent, 1}}));
    const std::int64_t all = allocator.options().pages_per_rank * allocator.options().ranks;
    EXPECT_EQ(allocator.free_pages(), all - held(cache, parent, 1) - held(cache, child, 1))
        << "what neither needs any more is free";
    const SequenceId late = cache.fork(child);
    EXPECT_EQ(allocator.released_pages(late), allocator.released_pages(child));
    cache.erase(child);
    EXPECT_TRUE(cache.step({{late, 5}, {parent, 2}}));
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(cache.step({{late, 2}, {parent, 4}}));
    cache.erase(parent);
    cache.erase(late);
    for (int group = 0; group < 3; ++group) {
      EXPECT_EQ(cache.cache().allocator(group).free_pages(), all);
    }
  });
}

TYPED_TEST(Windows, LetSpeculationBeRolledBack) {
  on_each_placement(place_of<typename TestFixture::Place>(), windows(), [](CheckedCache& cache) {
    const SequenceId sequence = prompt(cache, 30);
    for (std::int64_t accepted : {0, 4, 2, 5, 1, 0, 3}) {
      EXPECT_TRUE(cache.step({{sequence, 5}}));
      cache.truncate(sequence, cache.allocator().length(sequence) - 5 + accepted);
      EXPECT_TRUE(cache.step({{sequence, 1}}));
    }
    // Further back there are no pages; from the beginning none are needed.
    const std::uint64_t before = cache.cache().digest();
    EXPECT_THROW(cache.cache().truncate(sequence, 20), InvalidArgument);
    EXPECT_THROW((void)cache.cache().plan({{sequence, 0, 20}}), InvalidArgument);
    EXPECT_EQ(cache.cache().digest(), before);
    cache.truncate(sequence, 0);
    EXPECT_TRUE(cache.step({{sequence, 17, 4}}));
    EXPECT_TRUE(cache.step({{sequence, 9}}));
  });
}

TYPED_TEST(Windows, AreAddedToEveryMask) {
  on_each_placement(place_of<typename TestFixture::Place>(), windows(), [](CheckedCache& cache) {
    const SequenceId sequence = prompt(cache, 33);
    EXPECT_TRUE(cache.step({{sequence, 2}}, {.plan = {.mask = mods::no_mask()}}));
    EXPECT_TRUE(cache.step({{sequence, 2}}, {.plan = {.mask = mods::prefix_lm(29)}}));
    EXPECT_TRUE(cache.step({{sequence, 2}}, {.plan = {.mask = mods::sliding_window(3)}}));
    const StepOptions positions{.plan = {.q_positions = {40, 38}}};
    EXPECT_TRUE(cache.step({{sequence, 2}}, positions));
    EXPECT_TRUE(cache.step({{sequence, 1}}, {.replanned = true}));
  });
}

/// A cache all of whose layers have the window, and whose sequences are longer than its pools.
TYPED_TEST(Windows, LetSequencesOutgrowThePools) {
  CacheOptions options = small_cache(kSmallShape);
  options.window = kWindow;
  options.pages_per_rank = 6;
  on_each_placement(place_of<typename TestFixture::Place>(), options, [](CheckedCache& cache) {
    const SequenceId sequence = cache.create();
    for (int i = 0; i < 40; ++i) EXPECT_TRUE(cache.step({{sequence, 2, i % 5 == 0 ? 2 : 0}}));
    EXPECT_GT(cache.allocator().length(sequence), 3 * 6 * kPageSize);
  });
}

}  // namespace
}  // namespace kvmesh::test
