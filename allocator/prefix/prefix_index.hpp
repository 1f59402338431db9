// Finds pages by the hash of their tokens and of all tokens before them.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "kvmesh/prefix.hpp"

namespace kvmesh {

/// A page of all ranks' pools as one number: rank * pages_per_rank + index.
using PageSlot = std::uint32_t;
inline constexpr PageSlot kNoSlot = 0xFFFF'FFFF;

/// A tree of pages: a page's parent holds the tokens before it. Beside the tree, a hash table with
/// open addressing: an entry is 32 bits of the hash and the slot, so a lookup touches one line of
/// the table and the page's own hash. All memory is taken at construction: nothing here allocates
/// or throws later.
class PrefixIndex {
 public:
  PrefixIndex(PageSlot pages, int page_size);

  /// Returns kNoSlot for a page that is not in the index.
  PageSlot find(const PageHash& hash) const;
  /// Finds the leading pages of a chain. Returns how many; `found` gets their slots. Reads ahead,
  /// so that the lookups of one chain wait for memory together.
  /// REQUIRES: found.size() >= chain.size().
  std::size_t find_run(std::span<const PageHash> chain, std::span<PageSlot> found) const;

  /// Adds a page. `parent` is kNoSlot for a first page. `whole`: the page is only used as a whole,
  /// because its content depends on more than its tokens.
  /// REQUIRES: neither the slot nor the hash is in the index; the parent is.
  void insert(PageSlot slot, const PageHash& hash, PageSlot parent,
              std::span<const std::int32_t> tokens, bool whole);
  /// The slot keeps its hash until the next insert, for followers that read of the eviction later.
  /// REQUIRES: the page is in the index and has no children.
  void erase(PageSlot slot);

  /// Page `to` takes the place of page `from`. REQUIRES: `from` is in the index, `to` is not.
  void move(PageSlot from, PageSlot to);

  bool contains(PageSlot slot) const { return nodes_[slot].is_used; }
  const PageHash& hash(PageSlot slot) const { return nodes_[slot].hash; }
  PageSlot parent(PageSlot slot) const { return nodes_[slot].parent; }
  PageSlot first_child(PageSlot slot) const { return nodes_[slot].first_child; }
  std::span<const std::int32_t> tokens(PageSlot slot) const {
    return {tokens_.get() + slot * page_size_, page_size_};
  }

  /// Returns the child of `parent` that shares the most leading tokens with `tokens`, and how many.
  /// Considers the newest children only, and none that is used as a whole.
  struct Partial {
    PageSlot slot = kNoSlot;
    std::int64_t tokens = 0;
  };
  Partial longest_partial(PageSlot parent, std::span<const std::int32_t> tokens) const;

 private:
  struct Node {
    PageHash hash;
    PageSlot parent = kNoSlot, first_child = kNoSlot, next = kNoSlot, previous = kNoSlot;
    bool is_used = false;
    bool whole = false;
  };

  static std::uint64_t word(const PageHash& hash) {
    std::uint64_t word;
    std::memcpy(&word, hash.bytes.data(), sizeof word);
    return word;
  }
  static PageSlot slot_of(std::uint64_t entry) { return static_cast<PageSlot>(entry) - 1; }
  bool holds(std::uint64_t entry, const PageHash& hash) const {
    return (entry ^ word(hash)) >> 32 == 0 && nodes_[slot_of(entry)].hash == hash;
  }

  std::size_t page_size_;
  std::uint64_t mask_;
  std::vector<std::uint64_t> table_;        // [mask + 1] high half of the hash, slot + 1; 0: empty
  std::vector<Node> nodes_;                 // [pages]
  std::unique_ptr<std::int32_t[]> tokens_;  // [pages * page_size]
};

}  // namespace kvmesh
