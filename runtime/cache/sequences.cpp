// KvCache's operations on sequences: each is applied to every layer group, or to none.
#include "runtime/cache/cache_state.hpp"
#include "runtime/cache/moves/page_transfer.hpp"
#include "runtime/mesh/replica_check.hpp"

namespace kvmesh {
namespace {

/// Calls `make(allocator)` for each group. Returns the sequence that it made in all of them.
template <class Make>
SequenceId in_each(std::deque<CacheGroup>& groups, const Make& make) {
  SequenceId made;
  for (CacheGroup& group : groups) made = make(group.allocator);
  return made;
}

/// Returns the first reason by which a group refuses what `can(group)` asks.
template <class Can>
Result<Done> can_each(const std::deque<CacheGroup>& groups, const Can& can) {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (Result<Done> answer = can(g); !answer) return answer;
  }
  return Done{};
}

}  // namespace

SequenceId KvCache::create() {
  return in_each(state().groups, [](PageAllocator& it) { return it.create(); });
}

SequenceId KvCache::fork(SequenceId sequence) {
  return in_each(state().groups, [&](PageAllocator& it) { return it.fork(sequence); });
}

void KvCache::reserve(SequenceId sequence, std::int64_t tokens, std::optional<Stream> after) {
  try_reserve(sequence, tokens, after).value();
}

Result<Done> KvCache::try_reserve(SequenceId sequence, std::int64_t tokens,
                                  std::optional<Stream> after) {
  const auto can_reserve = [&](std::size_t g) {
    return state().groups[g].allocator.can_reserve(sequence, tokens);
  };
  state().take_back_pages(can_reserve);
  const Result<Done> can = can_each(state().groups, can_reserve);
  if (!can) return can;
  for (CacheGroup& group : state().groups) group.allocator.reserve(sequence, tokens);
  state().pages_taken(after);
  return can;
}

void KvCache::truncate(SequenceId sequence, std::int64_t length) {
  for (CacheGroup& group : state().groups) group.allocator.check_truncate(sequence, length);
  for (CacheGroup& group : state().groups) group.allocator.truncate(sequence, length);
}

void KvCache::erase(SequenceId sequence) {
  for (CacheGroup& group : state().groups) group.allocator.erase(sequence);
}

void KvCache::make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end,
                            std::optional<Stream> stream) {
  try_make_writable(sequence, begin, end, stream).value();
}

Result<Done> KvCache::try_make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end,
                                        std::optional<Stream> stream) {
  return state().try_make_writable(sequence, begin, end, stream);
}

Result<Done> KvCache::State::try_make_writable(SequenceId sequence, std::int64_t begin,
                                               std::int64_t end, std::optional<Stream> stream) {
  const auto can_make = [&](std::size_t g) {
    return groups[g].allocator.can_make_writable(sequence, begin, end);
  };
  take_back_pages(can_make);
  const Result<Done> can = can_each(groups, can_make);
  if (!can) return can;
  std::vector<std::vector<PageCopy>> copies;
  for (CacheGroup& group : groups) {
    copies.push_back(group.allocator.make_writable(sequence, begin, end));
  }
  make_copies(copies, stream).rethrow();
  return can;
}

Attempt KvCache::State::make_copies(std::span<const std::vector<PageCopy>> copies,
                                    std::optional<Stream> stream, Attempt attempt) {
  attempt.always([&] { pages_taken(stream); });
  for (std::size_t g = 0; g < copies.size(); ++g)
    attempt.together([&] { make_copies(g, copies[g], "copy_on_write", stream, attempt); });
  return attempt;
}

void KvCache::State::make_copies(std::size_t group, std::span<const PageCopy> copies,
                                 std::string_view operation, std::optional<Stream> stream,
                                 Attempt attempt) {
  if (PlanHistory::kInterval == 1) kvmesh::check_replicas(groups[group].allocator, mesh.world());
  if (!copies.empty())
    attempt([&] { stream ? order_after_move_streams(*stream) : wait_for_move_streams(); });
  transfer_pages(*groups[group].backend, pools, peers, mesh.kv_comm(), mesh.membership(), copies,
                 group, operation, stream, std::move(attempt));
}

PrefixKey KvCache::make_prefix_key(PrefixExtras extras) const {
  return PrefixKey(allocator().prefix_rules(), std::move(extras));
}

std::int64_t cached_tokens(std::deque<CacheGroup>& groups, const PrefixKey& key) {
  // A shorter run than a group's longest may lack pages of another one's window.
  std::int64_t tokens = std::ssize(key.tokens()), before = -1;
  while (tokens != before) {
    before = tokens;
    for (CacheGroup& group : groups) tokens = group.allocator.cached_tokens(key, tokens);
    if (groups.size() == 1) break;
  }
  return tokens;
}

PrefixMatch match_prefix(std::deque<CacheGroup>& groups, const PrefixKey& key) {
  if (groups.size() == 1) return groups[0].allocator.match_prefix(key);
  const std::int64_t tokens = cached_tokens(groups, key);
  PrefixMatch match;
  for (CacheGroup& group : groups) match = group.allocator.match_prefix(key, tokens);
  return match;
}

PrefixMatch KvCache::match_prefix(const PrefixKey& key, std::optional<Stream> after) {
  if (state().tiers) return state().tiers->match(key, after);
  return kvmesh::match_prefix(state().groups, key);
}

PrefixMatch KvCache::match_prefix_now(const PrefixKey& key, std::optional<Stream> after) {
  if (state().tiers) return state().tiers->match_now(key, after);
  return kvmesh::match_prefix(state().groups, key);
}

void KvCache::flush_tiers() {
  if (state().tiers) state().tiers->flush();
}

TierStatistics KvCache::tier_statistics() const {
  return state().tiers ? state().tiers->statistics() : TierStatistics{};
}

SequenceId KvCache::create_with_prefix(const PrefixMatch& match) {
  return in_each(state().groups, [&](PageAllocator& it) { return it.create_with_prefix(match); });
}

SequenceId KvCache::create_with_prefix(const PrefixKey& key, std::optional<Stream> after) {
  return create_with_prefix(match_prefix(key, after));
}

void KvCache::release(const PrefixMatch& match) {
  for (CacheGroup& group : state().groups) group.allocator.release(match);
}

void KvCache::publish(SequenceId sequence, const PrefixKey& key,
                      std::span<const Retention> retentions) {
  for (CacheGroup& group : state().groups) {
    group.allocator.check_publish(sequence, key, retentions);
  }
  for (CacheGroup& group : state().groups) group.allocator.publish(sequence, key, retentions);
}

}  // namespace kvmesh
