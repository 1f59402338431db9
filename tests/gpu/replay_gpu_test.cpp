// Drawn traces, served by caches on GPUs: attention of real shapes, sharing, tiers, several ranks.
#include "kvmesh/device_memory.hpp"
#include "launch/replay/attend.hpp"
#include "tests/launch/replay/short_replay.hpp"

namespace kvmesh::replay {
namespace {

AttendCounts attend_on_gpus(const Trace& trace, const ReplayOptions& options,
                            const AttendShape& shape) {
  const AttendCounts counts =
      attend(trace, options, {.every = 2, .shape = shape, .device = DeviceKind::kCuda},
             [](std::size_t) {});
  EXPECT_EQ(counts.wrong, 0) << counts.first_wrong;
  EXPECT_GE(counts.rows, counts.batches * shape.layers * shape.kv_heads);
  EXPECT_GT(counts.max_error, 0);
  return counts;
}

/// As many ranks as there are GPUs, up to four, and twice as many, which share them.
std::vector<int> numbers_of_ranks() {
  const int gpus = std::clamp(cuda_device_count(), 1, 4);
  return {gpus, 2 * gpus};
}

TEST(ReplayOnGpus, AttentionOverCachedPagesIsRight) {
  const Trace trace = short_requests();
  for (const int ranks : numbers_of_ranks()) {
    for (const double decode_ms : {0.0, 40.0}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::to_string(decode_ms) + " ms a token");
      const ReplayOptions options{.ranks = ranks,
                                  .capacity_tokens = 24'000,
                                  .home_threshold_tokens = 256,
                                  .decode_ms = decode_ms};
      const AttendCounts counts = attend_on_gpus(trace, options, default_shape(DeviceKind::kCuda));
      EXPECT_GT(counts.batches, 10);
      const ReplayCounts alone = counts_of(trace, options);
      EXPECT_EQ(counts.served.hit_tokens, alone.hit_tokens);
      EXPECT_GT(alone.hit_tokens, 0);
      EXPECT_GT(alone.evictions, 0);
    }
  }
}

TEST(ReplayOnGpus, PagesComeBackFromHostMemory) {
  const Trace trace = short_requests();
  for (const int ranks : numbers_of_ranks()) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const ReplayOptions options{.ranks = ranks,
                                .capacity_tokens = 8192,
                                .home_threshold_tokens = 256,
                                .host_tier_tokens = 40'000};
    const AttendCounts counts = attend_on_gpus(trace, options, default_shape(DeviceKind::kCuda));
    EXPECT_GT(counts.tiers.pages_back, 0);
    EXPECT_EQ(counts.tiers.host.loads, counts.tiers.pages_back);
    ReplayOptions without = options;
    without.host_tier_tokens = 0;
    EXPECT_GT(counts.served.hit_tokens, counts_of(trace, without).hit_tokens);
  }
}

TEST(ReplayOnGpus, OtherDtypesAndLayers) {
  const Trace trace = short_requests();
  const ReplayOptions options{.ranks = 1, .capacity_tokens = 24'000};
  for (const Dtype dtype : kAllDtypes) {
    SCOPED_TRACE(name(dtype));
    attend_on_gpus(trace, options,
                   {.layers = 2, .q_heads = 8, .kv_heads = 2, .dim = 64, .dtype = dtype});
  }
}

}  // namespace
}  // namespace kvmesh::replay
