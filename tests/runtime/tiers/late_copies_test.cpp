// Pages that come back from a tier to places that late copies of moves still write to.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "tests/runtime/cache/gated_backend.hpp"
#include "tests/runtime/cache/moves/side_moves.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kTokens = 8;  // of the prompt: two pages

CacheOptions with_host_tier() {
  CacheOptions options = uneven();
  options.groups.clear();
  options.pages_per_rank = 8;  // the prompt has no room on the first rank, from which pages move
  options.tiers.host_bytes = 1 << 20;
  return options;
}

/// Evicts what is cached, to the host tier.
void evict_all(KvCache& cache) {
  const SequenceId all = cache.create();
  cache.reserve(all, cache.allocator().free_pages() * 4);
  cache.erase(all);
}

/// Calls until copies are under way on each rank.
void begin_copies(KvCache& cache) {
  EXPECT_GT(cache.rebalance_now({.limit = 4}).moving, 0);
  for (int call = 0; call < 20; ++call) {
    EXPECT_EQ(cache.rebalance_now({.limit = 4}).moved, 0) << "the gate is closed";
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

TEST(LateCopies, EndBeforeTiersBringPagesBack) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    std::atomic<bool> is_open = false;
    MovingCache moving(
        comm,
        [&](std::unique_ptr<Backend> real) {
          return std::make_unique<GatedBackend>(std::move(real), is_open);
        },
        with_host_tier());
    KvCache& cache = moving.cache();
    PrefixKey key = cache.make_prefix_key();
    key.append(std::vector<std::int32_t>(kTokens, 5));
    evict_all(cache);
    begin_copies(cache);
    EXPECT_FALSE(cache.try_reserve(cache.create(), 4000).has_value());  // the moves are given up
    std::thread opens([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      is_open = true;
      is_open.notify_all();
    });
    const PrefixMatch match = cache.match_prefix(key);  // which waits for them
    EXPECT_EQ(match.tokens, kTokens);
    opens.join();
    finish(cache);
    const SequenceId sequence = cache.create_with_prefix(match);
    std::vector<double> first(static_cast<std::size_t>(kTokens));
    for (std::int64_t at = 0; at < kTokens; ++at) {
      const PageId page = cache.allocator().pages(sequence)[static_cast<std::size_t>(at / 4)];
      if (page.rank() != moving.mesh().page_rank()) continue;
      const TensorView k = cache.planes(0)[0];
      const std::int64_t place = page.index() * k.stride(0) + at % 4 * k.stride(2);
      first[static_cast<std::size_t>(at)] = double{static_cast<const float*>(k.data)[place]};
    }
    all_reduce_sum(moving.mesh().world(), first);
    for (std::int64_t at = 0; at < kTokens; ++at)
      EXPECT_EQ(first[static_cast<std::size_t>(at)], 3 + 0.125 * static_cast<double>(at));
    moving.check();
  });
}

}  // namespace
}  // namespace kvmesh::test
