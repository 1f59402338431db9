// The sequences and their page tables.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvmesh/types.hpp"

namespace kvmesh {

/// Placement's data about one sequence.
struct SequencePlacement {
  static constexpr std::int32_t kNone = -1;

  /// Pages that the sequence holds on each rank. Null until a policy needs it: only sequences that
  /// are spread over the ranks have it.
  std::unique_ptr<std::int32_t[]> pages_on;
  /// The home rank (balanced) or the rank of page 0 (striped). kNone: no page yet.
  std::int32_t anchor = kNone;
  /// The anchor is where pages of a cached prefix are, on which many sequences may begin.
  bool anchor_is_shared = false;
  /// The number of the sequence's leading pages that were given up, behind its window. Their
  /// entries of the table are invalid.
  std::int32_t released = 0;
  /// The number of the first slots, on the page after those, that were given up with them.
  std::int32_t released_slots = 0;

  void added(PageRank rank, std::int32_t pages = 1) {
    if (pages_on) pages_on[rank.value] += pages;
  }
  void removed(PageRank rank) { added(rank, -1); }
};

/// One sequence.
struct Sequence {
  std::vector<PageId> pages;  // in logical order
  std::int64_t length = 0;    // tokens
  std::uint64_t version = 0;  // grows whenever the content, or a page that holds some, changes
  SequencePlacement placement;
  /// Number of leading pages that are published under the hashes of this sequence's tokens.
  std::int32_t published = 0;
  /// The last batch that named the sequence: finds one that names it twice.
  std::uint64_t batch = 0;
  /// False only if none of its pages is shared or published: then no operation reads reference
  /// counts.
  bool may_share = false;
  /// True if it pins a match from which no sequence has been made yet.
  bool is_match = false;

  std::span<const PageId> held_pages() const {
    return std::span(pages).subspan(static_cast<std::size_t>(placement.released));
  }
};

/// Slots of sequences, addressed by ids that are never reused and name this table's space.
///
/// The generation of a slot is odd while it holds a sequence and even while it is empty; it grows
/// by one at each change, so a stale id never matches. A slot whose generation has run through all
/// values is retired.
class SequenceTable {
 public:
  explicit SequenceTable(std::uint16_t space) : space_(space) {}

  SequenceId create();
  /// Makes room for a page table of `pages` pages in the sequence that create() makes next.
  void prepare(std::size_t pages);
  void erase(SequenceId id);

  /// Null if there is no such sequence.
  Sequence* find(SequenceId id) {
    const std::uint32_t slot = id.slot(), generation = id.generation();
    if (id.space() != space_ || slot >= slots_.size()) return nullptr;
    if (slots_[slot].generation != generation || generation % 2 == 0) return nullptr;
    return &slots_[slot].sequence;
  }
  const Sequence* find(SequenceId id) const { return const_cast<SequenceTable*>(this)->find(id); }

  /// @throws UnknownSequence.
  Sequence& at(SequenceId id) {
    if (Sequence* sequence = find(id)) return *sequence;
    throw_unknown(id);
  }
  const Sequence& at(SequenceId id) const { return const_cast<SequenceTable*>(this)->at(id); }

  std::int64_t size() const { return size_; }

  /// Calls `visit(id, sequence)` for every sequence, by slot.
  template <class Visit>
  void for_each(Visit&& visit) {
    for (std::size_t slot = 0; slot < slots_.size(); ++slot)
      if (slots_[slot].generation % 2 == 1) visit(id_of(slot), slots_[slot].sequence);
  }
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (std::size_t slot = 0; slot < slots_.size(); ++slot)
      if (slots_[slot].generation % 2 == 1) visit(id_of(slot), slots_[slot].sequence);
  }

  /// Returns the number of slots that wait for a new sequence, counted along their list; -1 if the
  /// list is broken.
  std::int64_t count_empty_slots() const;
  std::int64_t retired_slots() const { return retired_; }
  std::int64_t slots() const { return static_cast<std::int64_t>(slots_.size()); }

 private:
  static constexpr std::uint32_t kMostSlots = 1 << SequenceId::kSlotBits;
  static constexpr std::uint32_t kGenerations = 1 << SequenceId::kGenerationBits;
  static constexpr std::uint32_t kNoSlot = 0xFFFF'FFFF;
  static constexpr std::size_t kMostKeptPages = 4096;  // 16 KiB

  struct Slot {
    Sequence sequence;
    std::uint32_t generation = 0;
    std::uint32_t next_empty = kNoSlot;
  };

  SequenceId id_of(std::size_t slot) const {
    return {space_, slots_[slot].generation, static_cast<std::uint32_t>(slot)};
  }
  [[noreturn]] void throw_unknown(SequenceId id) const;

  std::uint16_t space_;
  std::vector<Slot> slots_;
  std::uint32_t first_empty_ = kNoSlot;  // a stack, linked through next_empty
  std::int64_t size_ = 0;
  std::int64_t retired_ = 0;
};

}  // namespace kvmesh
