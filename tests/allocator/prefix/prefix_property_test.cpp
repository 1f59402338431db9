// Random operations on an allocator with a prefix cache find only what is cached.
#include <gtest/gtest.h>

#include "tests/allocator/prefix/prefix_serving.hpp"

namespace kvmesh {
namespace {

using test::uniform;
using test::prefix::kPageSize;
using test::prefix::Serving;

/// Operations per case: each of 5 policies on 1 to 4 ranks with 2 hashes.
std::int64_t steps() { return test::operations(3200, 1.0 / 40); }

class PrefixProperties : public testing::TestWithParam<Eviction> {};

TEST_P(PrefixProperties, RandomServingFindsOnlyCachedContent) {
  SCOPED_TRACE(test::seed_note());
  std::mt19937_64 random(test::seed());
  std::int64_t hits = 0, partial_hits = 0, evictions = 0, merged = 0, moved = 0, back = 0;
  std::int64_t moved_beside = 0, moved_cached = 0, pointless = 0;
  constexpr Placement kPlacements[] = {Placement::kBalanced, Placement::kStriped,
                                       Placement::kPacked};
  std::size_t next = 0;
  for (int ranks = 1; ranks <= 4; ++ranks)
    for (const PrefixHash hash : {PrefixHash::kSha256Cbor, PrefixHash::kXxh3}) {
      const AllocatorOptions options{.ranks = ranks,
                                     .pages_per_rank = uniform(random, 40, 60) / ranks,
                                     .page_size = kPageSize,
                                     .placement = kPlacements[next++ % 3],
                                     .home_threshold_tokens = uniform(random, 0, 16),
                                     .prefix = {.enabled = true,
                                                .hash = hash,
                                                .eviction = GetParam(),
                                                .compares_tokens = uniform(random, 0, 1) == 1},
                                     .window = ranks % 2 == 0 ? 0 : uniform(random, 0, 1) * 10};
      Serving serving(options, random());
      for (std::int64_t step = 0; step < steps(); ++step) {
        SCOPED_TRACE(testing::Message()
                     << "ranks " << ranks << ", " << name(options.placement) << ", step " << step);
        serving.step();
        if (HasFatalFailure()) return;
      }
      hits += serving.hits;
      partial_hits += serving.partial_hits;
      evictions += serving.evictions;
      merged += serving.merged;
      moved += serving.moved;
      back += serving.back;
      moved_beside += serving.moved_beside;
      moved_cached += serving.moved_cached;
      pointless += serving.pointless;
    }
  EXPECT_GT(hits, 500);
  EXPECT_GT(partial_hits, 100);
  EXPECT_GT(evictions, 500);
  EXPECT_GT(merged, 20);
  EXPECT_GT(moved, 200);
  EXPECT_GT(back, 500);
  EXPECT_GT(moved_beside, 200);
  EXPECT_GT(moved_cached, 20);
  EXPECT_GT(pointless, 20);
}

INSTANTIATE_TEST_SUITE_P(Policies, PrefixProperties,
                         testing::Values(Eviction::kHits, Eviction::kTwoQueues, Eviction::kLru,
                                         Eviction::kS3Fifo, Eviction::kSegmented));

}  // namespace
}  // namespace kvmesh
