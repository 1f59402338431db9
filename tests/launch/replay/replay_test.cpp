// Replays: hits and times that can be worked out by hand, the bound on random traces.
#include "launch/replay/replay.hpp"

#include <gtest/gtest.h>

#include "launch/replay/belady.hpp"
#include "launch/replay/policies.hpp"
#include "tests/launch/replay/short_replay.hpp"

namespace kvmesh::replay {
namespace {

Request request(double arrival_s, std::int64_t prompt, std::vector<std::uint32_t> blocks,
                std::int64_t answer = 0) {
  return {arrival_s, prompt, answer, std::move(blocks)};
}

TEST(Replay, CountsWhatIsShared) {
  const Trace trace{"",
                    {request(0, 1000, {0, 1}), request(1, 1500, {0, 1, 2}),
                     request(2, 1024, {0, 3}), request(3, 1000, {0, 1})}};
  const ReplayCounts counts = counts_of(trace, {.ranks = 2, .capacity_tokens = 8192});
  // 992 = 62 full pages, and 8 tokens of the page that the second request filled; 512; 1000.
  EXPECT_EQ(counts.hit_tokens, 992 + 512 + 1000);
  EXPECT_EQ(counts.prompt_tokens, 4524);
  EXPECT_EQ(counts.requests, 4);
  EXPECT_EQ(counts.evictions, 0);
}

TEST(Replay, RefusesWhatNeverFits) {
  const Trace trace{"", {request(0, 512, {0}), request(1, 1536, {1, 2, 3}), request(2, 512, {0})}};
  const ReplayCounts counts = counts_of(trace, {.capacity_tokens = 1024, .page_size = 512});
  EXPECT_EQ(counts.refused, 1);
  EXPECT_EQ(counts.requests, 2);
  EXPECT_EQ(counts.hit_tokens, 512);  // the refused one evicted nothing
}

TEST(Replay, AnswersGrowWithTheTimeAndLaterRequestsWait) {
  // 10 ms a token: the first request runs until 2 s, and then needs 3 pages of 4.
  const Trace trace{"",
                    {request(0, 512, {0}, 200), request(1, 512, {1}, 100), request(5, 512, {2})}};
  const ReplayOptions options{.capacity_tokens = 2048, .page_size = 512, .decode_ms = 10};
  const ReplayCounts free = counts_of(trace, options);
  EXPECT_EQ(free.delayed, 0);
  EXPECT_EQ(free.refused, 0);
  // Held pages at the three arrivals: 1; 2 and 1 (100 tokens of the answer); 1.
  EXPECT_NEAR(free.held, (1 + 3 + 1) / 3.0 / 4, 1e-9);
  EXPECT_NEAR(free.fragmentation, 1 - (512 + 612 + 512 + 512) / (5 * 512.0), 1e-9);
  const ReplayCounts narrow =
      counts_of(trace, {.capacity_tokens = 1536, .page_size = 512, .decode_ms = 10});
  EXPECT_EQ(narrow.delayed, 1);
  EXPECT_EQ(narrow.requests, 3);
}

// A rank has room for 16 homes of 2,048 tokens.
TEST(Replay, FillsTheRanksOfSmallPoolsEvenly) {
  for (const char* name : {"conversation", "synthetic"}) {
    const ReplayCounts counts = counts_of(
        generated_trace(name, 1500, 1), {.ranks = 8, .capacity_tokens = 256'000, .page_size = 64});
    EXPECT_GT(counts.evictions, 100'000);
    EXPECT_LE(counts.balance, 1.02) << name;
  }
}

TEST(Replay, RefusesSizesThatMakeNoSense) {
  EXPECT_THROW(allocator_options({.capacity_tokens = 1000, .page_size = 48}), InvalidArgument);
  EXPECT_THROW(allocator_options({.ranks = 8, .capacity_tokens = 100}), InvalidArgument);
  EXPECT_THROW(allocator_options({.capacity_tokens = 1000, .decode_ms = -1}), InvalidArgument);
  EXPECT_THROW(allocator_options({.capacity_tokens = 1000, .host_tier_tokens = -1}),
               InvalidArgument);
  EXPECT_THROW(allocator_options({.capacity_tokens = 1000, .file_tier_tokens = 5}),
               InvalidArgument);
  EXPECT_THROW(
      allocator_options({.capacity_tokens = 1000, .host_tier_tokens = std::int64_t{1} << 55}),
      InvalidArgument);
  EXPECT_THROW(policy_from("fifo"), InvalidArgument);
}

TEST(Belady, KeepsWhatComesAgainFirst) {
  // Three prompts in turn, room for two: what was used least recently comes again first.
  Trace trace;
  for (int i = 0; i < 30; ++i)
    trace.requests.push_back(request(i, 512, {static_cast<std::uint32_t>(i % 3)}));
  const ReplayOptions lru{.capacity_tokens = 1024, .page_size = 512, .eviction = Eviction::kLru};
  EXPECT_EQ(counts_of(trace, lru).hit_tokens, 0);
  // One of the two stays for two of three turns, the other for the next: 13 of the 27.
  const std::int64_t best = best_hits(trace, lru).hit_tokens;
  EXPECT_GE(best, 13 * 512);
  EXPECT_LE(best, 18 * 512);
  ReplayOptions larger = lru;
  larger.capacity_tokens = 3 * 512;
  EXPECT_EQ(best_hits(trace, larger).hit_tokens, 27 * 512);
}

// A request that never fits is neither served nor a use of its blocks.
TEST(Belady, LeavesOutWhatIsRefused) {
  Trace trace;
  for (int i = 0; i < 6; ++i) {
    trace.requests.push_back(request(3 * i, 512, {0}));
    trace.requests.push_back(request(3 * i + 1, 512, {1}));
    trace.requests.push_back(request(3 * i + 2, 3 * 512, {2, 3, 4}));
    trace.requests.back().answer_tokens = 600;
  }
  ReplayOptions options{.capacity_tokens = 1024, .page_size = 512, .host_tier_tokens = 4096};
  const BestHits best = best_hits(trace, options);
  EXPECT_EQ(best.prompt_tokens, 12 * 512);
  EXPECT_EQ(best.hit_tokens, 10 * 512);
  EXPECT_DOUBLE_EQ(best.rate(), 10.0 / 12);
  options.host_tier_tokens = 0;
  EXPECT_EQ(counts_of(trace, options).hit_rate(), best_hits(trace, options).rate());
  options.capacity_tokens = 3 * 512;
  EXPECT_EQ(best_hits(trace, options).prompt_tokens, 30 * 512);
  options.decode_ms = 1;  // the answers need room, too
  EXPECT_EQ(best_hits(trace, options).prompt_tokens, 12 * 512);
}

// The capacity in pages of one rank: what a larger page rounds off would favour neither.
TEST(Belady, NoPolicyHitsMore) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    const Trace trace = generated_trace(seed % 2 ? "conversation" : "synthetic", 150, seed);
    for (const std::int64_t capacity : {200'000, 400'000, 4'000'000}) {
      const int page_size = seed % 3 ? 64 : 512;
      for (const Eviction policy : kAllEvictions) {
        const ReplayOptions options{
            .capacity_tokens = capacity, .page_size = page_size, .eviction = policy};
        const std::int64_t best = best_hits(trace, options).hit_tokens;
        const ReplayCounts counts = counts_of(trace, options);
        EXPECT_LE(counts.hit_tokens, best) << name(policy) << ", seed " << seed;
        if (capacity > 1'000'000) {
          EXPECT_EQ(counts.hit_tokens, best) << name(policy) << ", seed " << seed;
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::replay
