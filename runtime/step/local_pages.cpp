#include "runtime/step/local_pages.hpp"

#include <algorithm>

namespace kvmesh {

LocalSequence* LocalPages::find(SequenceId id) {
  return id.slot() < sequences_.size() ? &sequences_[id.slot()] : nullptr;
}

LocalSequence& LocalPages::update(SequenceId id, std::span<const PageId> table) {
  if (id.slot() >= sequences_.size()) sequences_.resize(id.slot() + std::size_t{1});
  LocalSequence& sequence = sequences_[id.slot()];
  sequence.held.resize(ranks_);
  for (; sequence.seen < table.size(); ++sequence.seen) {
    const PageId page = sequence.last = table[sequence.seen];
    ++sequence.held[static_cast<std::size_t>(page.rank().value)];
    if (page.rank() != me_) continue;
    sequence.pages.push_back({page.index(), static_cast<std::int32_t>(sequence.seen)});
  }
  return sequence;
}

void LocalPages::drop_last(LocalSequence& sequence, PageId page) const {
  --sequence.seen;
  --sequence.held[static_cast<std::size_t>(page.rank().value)];
  if (page.rank() != me_) return;
  sequence.pages.pop_back();
  sequence.fresh = std::min(sequence.fresh, sequence.pages.size());
}

void LocalPages::copied(SequenceId id, std::span<const PageId> table) {
  LocalSequence* sequence = find(id);
  if (!sequence || sequence->seen == 0 || sequence->last == table[sequence->seen - 1]) return;
  drop_last(*sequence, sequence->last);
  sequence->last = sequence->seen > 0 ? table[sequence->seen - 1] : PageId();
}

void LocalPages::truncate(SequenceId id, std::span<const PageId> table, std::size_t pages) {
  LocalSequence* sequence = find(id);
  if (!sequence || sequence->seen <= pages) return;
  while (sequence->seen > pages) drop_last(*sequence, table[sequence->seen - 1]);
  sequence->last = pages > 0 ? table[pages - 1] : PageId();
}

void LocalPages::erase(SequenceId id) {
  if (LocalSequence* sequence = find(id)) *sequence = LocalSequence();
}

}  // namespace kvmesh
