// The parts that tests of moves beside the steps share.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/runtime/cache/moves/moving_cache.hpp"

namespace kvmesh::test {

/// The first rank has all pages.
inline CacheOptions uneven() {
  CacheOptions options = MovingCache::options();
  options.placement = Placement::kPacked;
  return options;
}

inline const MakeBackend kAsItIs = [](std::unique_ptr<Backend> real) { return real; };

/// No rank maps another one's pools: pages travel as messages.
inline void unmap(MovingCache& moving) {
  inside(moving.cache()).peers = PeerPools(moving.mesh().kv_comm().size());
}

/// Calls until nothing moves. Returns how many pages have moved.
inline std::int64_t finish(KvCache& cache) {
  for (std::int64_t moved = 0;;) {
    const MoveProgress now = cache.rebalance_now();
    moved += now.moved;
    if (now.moving == 0) return moved;
    std::this_thread::yield();
  }
}

/// Calls until all has its place. Returns how many pages have moved.
inline std::int64_t level(KvCache& cache, const RebalanceOptions& options) {
  for (std::int64_t moved = 0;;) {
    const MoveProgress now = cache.rebalance_now(options);
    moved += now.moved;
    if (now.moving == 0) return moved;
    EXPECT_LE(now.moving, options.limit);
    std::this_thread::yield();
  }
}

/// The pages of the first group that are being moved.
inline std::int64_t moving_pages(const KvCache& cache) {
  const PageAllocator& allocator = cache.allocator();
  std::int64_t count = 0;
  for (PageRank rank{0}; rank.value < allocator.options().ranks; ++rank.value)
    for (std::int32_t index = 0; index < allocator.options().pages_per_rank; ++index)
      count += allocator.is_moving({rank, index}) ? 1 : 0;
  return count;
}

/// Runs on 2 to 4 ranks, with and without maps of the others' pools.
inline void on_ranks(const std::function<void(Communicator&, bool maps)>& body) {
  for (const bool maps : {true, false}) {
    SCOPED_TRACE(maps ? "maps" : "messages");
    const auto run = [&](Communicator& comm) { body(comm, maps); };
    LoopbackRanks<2>::run(run);
    LoopbackRanks<3>::run(run);
    LoopbackRanks<4>::run(run);
  }
}

}  // namespace kvmesh::test
