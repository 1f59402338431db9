#include "allocator/sequence_table.hpp"

#include "core/check.hpp"

namespace kvmesh {

void SequenceTable::prepare(std::size_t pages) {
  if (first_empty_ == kNoSlot) {
    require(slots_.size() < kMostSlots, "more than {} sequences at once", kMostSlots);
    slots_.emplace_back();
    first_empty_ = static_cast<std::uint32_t>(slots_.size() - 1);
  }
  slots_[first_empty_].sequence.pages.reserve(pages);
}

SequenceId SequenceTable::create() {
  prepare(0);
  Slot& slot = slots_[first_empty_];
  const std::uint32_t place = first_empty_;
  first_empty_ = slot.next_empty;
  ++slot.generation;
  ++size_;
  return id_of(place);
}

void SequenceTable::erase(SequenceId id) {
  Sequence& sequence = at(id);
  std::vector<PageId> pages = std::move(sequence.pages);
  pages.clear();
  sequence = Sequence{};
  // The next sequence of the slot needs no memory for a page table as short as this one.
  if (pages.capacity() <= kMostKeptPages) sequence.pages = std::move(pages);
  const std::uint32_t place = id.slot();
  Slot& slot = slots_[place];
  --size_;
  slot.generation = (slot.generation + 1) % kGenerations;
  if (slot.generation == 0) {  // all generations used up: 2^23 sequences lived here
    ++retired_;
    return;
  }
  slot.next_empty = first_empty_;
  first_empty_ = place;
}

std::int64_t SequenceTable::count_empty_slots() const {
  std::int64_t count = 0;
  for (std::uint32_t slot = first_empty_; slot != kNoSlot; slot = slots_[slot].next_empty) {
    if (slot >= slots_.size() || slots_[slot].generation % 2 == 1) return -1;
    if (++count > slots()) return -1;
  }
  return count;
}

void SequenceTable::throw_unknown(SequenceId id) const { throw UnknownSequence(id, space_); }

}  // namespace kvmesh
