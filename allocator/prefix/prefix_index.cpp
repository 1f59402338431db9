#include "allocator/prefix/prefix_index.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace kvmesh {
namespace {

// Two lines per page of a chain: 8 pages ahead cover some 100 ns of memory latency.
constexpr std::size_t kTableAhead = 16, kNodeAhead = 8;

/// A parent of many prompts has many children; the newest are the likeliest.
constexpr int kMostChildren = 32;

}  // namespace

PrefixIndex::PrefixIndex(PageSlot pages, int page_size)
    : page_size_(static_cast<std::size_t>(page_size)),
      mask_(std::bit_ceil(std::uint64_t{pages} * 2) - 1),
      table_(mask_ + 1),
      nodes_(pages),
      tokens_(std::make_unique_for_overwrite<std::int32_t[]>(pages * page_size_)) {}

PageSlot PrefixIndex::find(const PageHash& hash) const {
  for (std::uint64_t at = word(hash) & mask_; table_[at] != 0; at = (at + 1) & mask_) {
    if (holds(table_[at], hash)) return slot_of(table_[at]);
  }
  return kNoSlot;
}

std::size_t PrefixIndex::find_run(std::span<const PageHash> chain,
                                  std::span<PageSlot> found) const {
  for (std::size_t i = 0; i < chain.size(); ++i) {
    if (i + kTableAhead < chain.size())
      __builtin_prefetch(&table_[word(chain[i + kTableAhead]) & mask_]);
    if (i + kNodeAhead < chain.size()) {
      const std::uint64_t entry = table_[word(chain[i + kNodeAhead]) & mask_];
      if (entry != 0) __builtin_prefetch(&nodes_[slot_of(entry)]);
    }
    found[i] = find(chain[i]);
    if (found[i] == kNoSlot) return i;
  }
  return chain.size();
}

void PrefixIndex::insert(PageSlot slot, const PageHash& hash, PageSlot parent,
                         std::span<const std::int32_t> tokens, bool whole) {
  std::uint64_t at = word(hash) & mask_;
  while (table_[at] != 0) at = (at + 1) & mask_;
  table_[at] = (word(hash) >> 32 << 32) | (slot + 1);
  Node& node = nodes_[slot];
  node = {.hash = hash, .parent = parent, .is_used = true, .whole = whole};
  std::ranges::copy(tokens, tokens_.get() + slot * page_size_);
  if (parent == kNoSlot) return;
  node.next = nodes_[parent].first_child;
  if (node.next != kNoSlot) nodes_[node.next].previous = slot;
  nodes_[parent].first_child = slot;
}

void PrefixIndex::erase(PageSlot slot) {
  Node& node = nodes_[slot];
  std::uint64_t hole = word(node.hash) & mask_;
  while (slot_of(table_[hole]) != slot) hole = (hole + 1) & mask_;
  // Entries behind the hole move up if a lookup that starts at their home would meet the hole.
  for (std::uint64_t at = (hole + 1) & mask_; table_[at] != 0; at = (at + 1) & mask_) {
    const std::uint64_t home = word(nodes_[slot_of(table_[at])].hash) & mask_;
    if (((at - home) & mask_) < ((at - hole) & mask_)) continue;
    table_[hole] = table_[at];
    hole = at;
  }
  table_[hole] = 0;
  if (node.next != kNoSlot) nodes_[node.next].previous = node.previous;
  if (node.previous != kNoSlot) {
    nodes_[node.previous].next = node.next;
  } else if (node.parent != kNoSlot) {
    nodes_[node.parent].first_child = node.next;
  }
  node = {.hash = node.hash};
}

void PrefixIndex::move(PageSlot from, PageSlot to) {
  Node& node = nodes_[to];
  node = std::exchange(nodes_[from], Node());
  std::uint64_t at = word(node.hash) & mask_;
  while (slot_of(table_[at]) != from) at = (at + 1) & mask_;
  table_[at] = (table_[at] >> 32 << 32) | (to + 1);
  std::ranges::copy(tokens(from), tokens_.get() + to * page_size_);
  if (node.next != kNoSlot) nodes_[node.next].previous = to;
  if (node.previous != kNoSlot) {
    nodes_[node.previous].next = to;
  } else if (node.parent != kNoSlot) {
    nodes_[node.parent].first_child = to;
  }
  for (PageSlot child = node.first_child; child != kNoSlot; child = nodes_[child].next) {
    nodes_[child].parent = to;
  }
}

PrefixIndex::Partial PrefixIndex::longest_partial(PageSlot parent,
                                                  std::span<const std::int32_t> tokens) const {
  Partial best;
  PageSlot child = nodes_[parent].first_child;
  for (int seen = 0; child != kNoSlot && seen < kMostChildren; ++seen) {
    const std::span<const std::int32_t> have = this->tokens(child);
    const auto end = std::ranges::mismatch(have, tokens).in1;
    const std::int64_t same = nodes_[child].whole ? 0 : end - have.begin();
    if (same > best.tokens) best = {child, same};
    child = nodes_[child].next;
  }
  return best;
}

}  // namespace kvmesh
