#include "runtime/local_pages.hpp"

#include <algorithm>

namespace kvmesh {

LocalSequence& LocalPages::update(SequenceId id, std::span<const PageId> pages) {
  if (id.slot() >= sequences_.size()) sequences_.resize(id.slot() + std::size_t{1});
  LocalSequence& sequence = sequences_[id.slot()];
  std::vector<PageId>& table = sequence.table;
  sequence.held.resize(ranks_);
  while (table.size() > pages.size()) drop_last(sequence);
  if (!table.empty() && table.back() != pages[table.size() - 1]) drop_last(sequence);
  for (std::size_t logical = table.size(); logical < pages.size(); ++logical) {
    const PageId page = pages[logical];
    table.push_back(page);
    ++sequence.held[static_cast<std::size_t>(page.rank().value)];
    if (page.rank() == me_) {
      sequence.pages.push_back({page.index(), static_cast<std::int32_t>(logical)});
    }
  }
  return sequence;
}

void LocalPages::drop_last(LocalSequence& sequence) const {
  const Rank rank = sequence.table.back().rank();
  sequence.table.pop_back();
  --sequence.held[static_cast<std::size_t>(rank.value)];
  if (rank != me_) return;
  sequence.pages.pop_back();
  sequence.fresh = std::min(sequence.fresh, sequence.pages.size());
}

void LocalPages::truncate(SequenceId id, std::int64_t pages) {
  if (id.slot() >= sequences_.size()) return;
  LocalSequence& sequence = sequences_[id.slot()];
  while (std::ssize(sequence.table) > pages) drop_last(sequence);
}

void LocalPages::erase(SequenceId id) {
  if (id.slot() < sequences_.size()) sequences_[id.slot()] = LocalSequence();
}

}  // namespace kvmesh
