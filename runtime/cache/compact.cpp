// KvCache::compact: keeps the drafts that a step has accepted.
#include <algorithm>

#include "core/check.hpp"
#include "runtime/cache/cache_state.hpp"
#include "runtime/cache/token_moves.hpp"

namespace kvmesh {
namespace {

void check_kept(const PageAllocator& allocator, const KeptTokens& tokens) {
  const std::int64_t length = allocator.length(tokens.sequence);
  require(tokens.begin >= 0 && tokens.begin <= length,
          "compact: from position {} on, sequence {} has {} tokens", tokens.begin, tokens.sequence,
          length);
  std::int64_t next = tokens.begin;
  for (std::int64_t position : tokens.kept) {
    require(position >= next && position < length,
            "compact: sequence {} cannot keep position {}: it is not in [{}, {})", tokens.sequence,
            position, next, length);
    next = position + 1;
  }
}

void check_once(std::span<const KeptTokens> batch) {
  std::vector<std::size_t> slots;
  for (const KeptTokens& tokens : batch) slots.push_back(tokens.sequence.slot());
  std::ranges::sort(slots);
  require(std::ranges::adjacent_find(slots) == slots.end(), "compact: a sequence appears twice");
}

/// Returns the sequence's length afterwards.
std::int64_t length_with(const KeptTokens& tokens) {
  return tokens.begin + std::ssize(tokens.kept);
}

/// Returns how many of the kept tokens stay in place.
std::int64_t unmoved(const KeptTokens& tokens) {
  std::int64_t count = 0;
  for (std::int64_t position : tokens.kept) {
    if (position != tokens.begin + count) break;
    ++count;
  }
  return count;
}

void add_moves(const PageAllocator& allocator, const KeptTokens& tokens,
               std::vector<TokenMove>& moves) {
  const std::int64_t page_size = allocator.options().page_size;
  const std::span<const PageId> table = allocator.pages(tokens.sequence);
  const auto place = [&](std::int64_t position) {
    return TokenPlace{table[static_cast<std::size_t>(position / page_size)],
                      static_cast<std::int32_t>(position % page_size)};
  };
  const std::int64_t in_window = allocator.first_kept(tokens.sequence);
  for (std::int64_t i = unmoved(tokens); i < std::ssize(tokens.kept); ++i) {
    if (tokens.begin + i < in_window) continue;  // behind a window: no query sees it
    moves.push_back({place(tokens.kept[static_cast<std::size_t>(i)]), place(tokens.begin + i)});
  }
}

std::vector<TokenMove> moves_of(const PageAllocator& allocator, std::span<const KeptTokens> batch) {
  std::vector<TokenMove> moves;
  for (const KeptTokens& tokens : batch) add_moves(allocator, tokens, moves);
  return moves;
}

std::vector<PagePlanes> planes_of(const PoolStorage& pools, std::span<const int> layers) {
  std::vector<PagePlanes> planes;
  for (const int layer : layers) planes.push_back(pools.layer(layer));
  return planes;
}

}  // namespace

void KvCache::compact(std::span<const KeptTokens> batch, Stream stream) {
  State& cache = state();
  for (const KeptTokens& tokens : batch) {
    check_kept(allocator(), tokens);
    for (const CacheGroup& group : cache.groups) {  // before anything moves
      group.allocator.check_truncate(tokens.sequence, length_with(tokens));
    }
  }
  check_once(batch);
  // If a copy fails on this rank, the other ranks still make their copies and exchange tokens with
  // this one, so that all ranks have the same lengths afterwards.
  Attempt attempt;
  for (const KeptTokens& tokens : batch) {
    const std::int64_t first = tokens.begin + unmoved(tokens), end = length_with(tokens);
    if (first == end) continue;
    Result<Done> can = Done{};
    attempt.together([&] { can = cache.try_make_writable(tokens.sequence, first, end, stream); });
    if (!can) throw can.reason();  // on all ranks alike
  }
  attempt([&] { cache.order_after_move_streams(stream); });
  for (std::size_t g = 0; g < cache.groups.size(); ++g) {
    CacheGroup& group = cache.groups[g];
    if (group.has_states()) continue;
    const std::vector<TokenMove> moves = moves_of(group.allocator, batch);
    if (moves.empty()) continue;
    const std::vector<PagePlanes> layers =
        planes_of(cache.pools, cache.pools.layout().groups()[g].layers);
    attempt.together([&] {
      move_tokens(*group.backend, TokenPlanes(layers), cache.mesh.kv_comm(),
                  cache.mesh.membership(), moves, stream);
    });
  }
  for (const KeptTokens& tokens : batch) truncate(tokens.sequence, length_with(tokens));
  attempt.rethrow();
}

}  // namespace kvmesh
