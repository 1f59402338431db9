// KvCache's operations that move pages between ranks, and change the sizes of pools.
#include "core/check.hpp"
#include "core/posix/free_memory.hpp"
#include "runtime/cache/cache_state.hpp"

namespace kvmesh {
namespace {

/// Returns the first rank of the world for which `good` is false. Collective over the world.
std::optional<Rank> first_without(Communicator& world, bool good, std::string_view operation) {
  const std::vector<std::uint8_t> all =
      all_gather_value(world, static_cast<std::uint8_t>(good), operation);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank] == 0) return Rank{static_cast<std::int32_t>(rank)};
  return std::nullopt;
}

}  // namespace

/// The moves are finished on every rank or on none: the ranks exchange whether they have made their
/// copies.
std::int64_t KvCache::State::complete_moves(std::span<const std::vector<PageCopy>> copies) {
  std::int64_t moved = 0;
  for (const std::vector<PageCopy>& of_group : copies) moved += std::ssize(of_group);
  Attempt attempt;
  attempt.always([&] { pages_taken(); });
  attempt([&] { wait_for_move_streams(); });
  try {
    if (moved > 0 || tiers) copy_moves(copies, std::move(attempt));
  } catch (...) {
    for (CacheGroup& group : groups) group.allocator.cancel_moves();
    throw;
  }
  for (CacheGroup& group : groups) group.allocator.finish_moves();
  return moved;
}

void KvCache::State::copy_moves(std::span<const std::vector<PageCopy>> copies, Attempt attempt) {
  // After a failure, too: the other ranks wait for this one in each group.
  for (std::size_t g = 0; g < copies.size(); ++g)
    attempt.always([&] { make_copies(g, copies[g], "move pages", {}, attempt); });
  std::optional<Rank> failed;
  try {
    failed = first_without(mesh.world(), !attempt.failed(), "pages moved");
  } catch (const Error&) {
    if (!attempt.failed()) throw;
  }
  attempt.rethrow();
  if (failed)
    throw Error(
        fmt::format("move pages: rank {} could not copy; nothing has moved", failed->value));
}

template <class Start>
std::vector<std::vector<PageCopy>> KvCache::State::start_moves(const Start& start) {
  for (;;) {
    std::vector<std::vector<PageCopy>> copies;
    std::int64_t moves = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      copies.push_back(start(g, moves));
      moves += std::ssize(copies.back());
    }
    if (!tiers || !tiers->loads_to(copies)) return copies;
    for (CacheGroup& group : groups) group.allocator.cancel_moves();
    tiers->give_up_loads();
  }
}

std::int64_t KvCache::rebalance(std::int64_t limit) {
  require(limit >= 0, "rebalance of {} pages", limit);
  State& cache = state();
  cache.side_moves.complete();
  return cache.complete_moves(cache.start_moves([&](std::size_t g, std::int64_t moves) {
    return cache.groups[g].allocator.start_rebalance(limit - moves);
  }));
}

MoveProgress KvCache::rebalance_now(const RebalanceOptions& options, std::optional<Stream> after) {
  State& cache = state();
  SideMoves& moves = cache.side_moves;
  require(options.limit >= 0, "rebalance of {} pages", options.limit);
  require(options.leaving.value < cache.mesh.kv_parallel(), "rebalance: page rank {} of {}",
          options.leaving.value, cache.mesh.kv_parallel());
  moves.proceed();
  if (!moves.is_under_way() && moves.order(options)) {
    moves.attempt().always([&] { cache.pages_taken(after); });
    moves.attempt()([&] { cache.start_side_moves(after); });
    moves.proceed();
  }
  return moves.take_progress();
}

void KvCache::State::start_side_moves(std::optional<Stream> after) {
  if (after) {
    order_after_late_moves(*after);
  } else {
    wait_idle();
    wait_for_late_moves();
  }
  side_moves.start(after, tiers ? tiers->copies_so_far() : std::vector<TierJob>());
}

std::int64_t KvCache::drain(PageRank rank) { return try_drain(rank).value(); }
Result<std::int64_t> KvCache::try_drain(PageRank rank) { return try_resize(rank, 0); }

void KvCache::add_rank(PageRank rank) {
  require(state().pool_size(rank).now == 0, "add_rank: page rank {} is not drained", rank.value);
  resize(rank, state().pool_size(rank).last);
}

std::int64_t KvCache::resize(PageRank rank, std::int64_t pages) {
  return try_resize(rank, pages).value();
}

Result<std::int64_t> KvCache::try_resize(PageRank rank, std::int64_t pages) {
  State& cache = state();
  PoolSizes& size = cache.pool_size(rank);
  if (pages > size.most && size.growth == Growth::kRefused)
    throw Unsupported(fmt::format(
        "resize: {} pages, but the pool of page rank {} keeps the memory of its first {}: its GPU "
        "has no memory that is mapped in pieces",
        pages, rank.value, size.most));
  require(pages >= 0 && pages <= size.most,
          "resize: {} pages, the pool of page rank {} has room for {}", pages, rank.value,
          size.most);
  const std::vector<std::int64_t> sizes = pages_of_groups(cache.options, pages);
  const auto can_resize = [&](std::size_t g) {
    return cache.groups[g].allocator.can_resize(rank, sizes[g]);
  };
  cache.side_moves.complete();
  cache.take_back_pages(can_resize);
  for (std::size_t g = 0; g < sizes.size(); ++g)
    if (const Result<Done> can = can_resize(g); !can) return can.reason();
  if (pages > size.now) cache.make_room(rank, pages);
  const std::int64_t moved =
      cache.complete_moves(cache.start_moves([&](std::size_t g, std::int64_t) {
        return cache.groups[g].allocator.start_resize(rank, sizes[g]);
      }));
  Attempt attempt;
  if (rank == cache.mesh.page_rank()) {
    attempt([&] {
      if (size.growth == Growth::kPieces) cache.wait_idle();  // the pages that go may still be read
      cache.pools.resize(sizes);
    });
  }
  size.now = pages;
  if (pages > 0) size.last = pages;
  if (size.growth == Growth::kPieces) {
    const Rank holder = cache.mesh.membership().holder(rank);
    attempt.together([&] { cache.peers.map_again(cache.pools, cache.mesh.kv_comm(), holder); });
  }
  attempt.rethrow();
  return moved;
}

PoolSizes& KvCache::State::pool_size(PageRank rank) {
  require(rank.value >= 0 && rank.value < mesh.kv_parallel(), "cache: page rank {} of {}",
          rank.value, mesh.kv_parallel());
  return pool_sizes[static_cast<std::size_t>(rank.value)];
}

std::int64_t KvCache::State::pool_bytes(std::int64_t pages) const {
  if (pages == 0) return 0;
  CacheOptions sized = options;
  sized.pages_per_rank = pages;
  return pool_layout(mesh, sized).size_bytes();
}

void KvCache::State::make_room(PageRank rank, std::int64_t pages) {
  const PoolSizes& size = pool_size(rank);
  const std::int64_t more = pool_bytes(pages) - pool_bytes(size.now);
  const bool is_mine = rank == mesh.page_rank(), grows_here = is_mine && pools.in_pieces();
  bool has_room = true;
  if (grows_here) {
    try {
      pools.resize(pages_of_groups(options, pages));
    } catch (const Error&) {
      has_room = false;
    }
  } else if (is_mine && size.growth == Growth::kSystem) {
    const std::size_t free = free_memory(mesh.device());  // 0: unknown
    has_room = free == 0 || std::cmp_less_equal(more, free);
  }
  const std::optional<Rank> without = first_without(mesh.world(), has_room, "room for pools");
  if (!without) return;
  if (grows_here && has_room) pools.resize(pages_of_groups(options, size.now));
  throw OutOfMemory(*without, more, "the system has less memory left");
}

}  // namespace kvmesh
