#include "runtime/step/local_pages.hpp"

#include <algorithm>

namespace kvmesh {

LocalSequence& LocalPages::update(SequenceId id, std::span<const PageId> table) {
  follow();
  if (id.slot() >= sequences_.size()) sequences_.resize(id.slot() + std::size_t{1});
  LocalSequence& sequence = sequences_[id.slot()];
  if (sequence.is_lost) {  // in place: plans that are still good point into these pages
    sequence.pages.clear();
    sequence.held.clear();
    sequence.seen = 0;
    sequence.is_lost = false;
  }
  sequence.held.resize(ranks_);
  for (; sequence.seen < table.size(); ++sequence.seen) {
    const PageId page = table[sequence.seen];
    if (!page.valid()) continue;  // released
    ++sequence.held[static_cast<std::size_t>(page.rank().value)];
    if (page.rank() != me_) continue;
    sequence.pages.push_back({page.index(), static_cast<std::int32_t>(sequence.seen)});
  }
  return sequence;
}

void LocalPages::follow() {
  for (;;) {
    const ChangeRun run = allocator_.read_changes(cursor_);
    if (run.lost) {
      for (LocalSequence& sequence : sequences_) sequence.is_lost = true;
    } else if (run.changes.empty()) {
      return;
    }
    for (const Change& change : run.changes) apply(change);
  }
}

/// Changes past `seen` do not matter: update() has not read those entries.
void LocalPages::apply(const Change& change) {
  if (change.sequence.slot() >= sequences_.size()) return;
  LocalSequence& sequence = sequences_[change.sequence.slot()];
  if (change.kind == ChangeKind::kErased) {
    sequence = LocalSequence();
  } else if (sequence.is_lost || static_cast<std::size_t>(change.position) >= sequence.seen) {
    return;
  } else if (change.kind == ChangeKind::kReplaced) {
    replace(sequence, change);
  } else if (change.kind == ChangeKind::kDropped) {
    drop_last(sequence, change.old_page);
  } else if (change.kind == ChangeKind::kReleased) {
    release(sequence, change);
  }
}

void LocalPages::replace(LocalSequence& sequence, const Change& change) const {
  const PageRank from = change.old_page.rank(), to = change.new_page.rank();
  --sequence.held[static_cast<std::size_t>(from.value)];
  ++sequence.held[static_cast<std::size_t>(to.value)];
  std::vector<LocalPage>& pages = sequence.pages;
  auto page = std::ranges::lower_bound(pages, change.position, {}, &LocalPage::logical);
  if (from == me_ && to == me_) {
    page->page = change.new_page.index();
  } else if (from == me_) {
    pages.erase(page);
  } else if (to == me_) {
    pages.insert(page, {change.new_page.index(), change.position});
  }
}

void LocalPages::drop_last(LocalSequence& sequence, PageId page) const {
  --sequence.seen;
  if (!page.valid()) return;  // it was released
  --sequence.held[static_cast<std::size_t>(page.rank().value)];
  if (page.rank() == me_) sequence.pages.pop_back();
}

void LocalPages::release(LocalSequence& sequence, const Change& change) const {
  --sequence.held[static_cast<std::size_t>(change.old_page.rank().value)];
  if (change.old_page.rank() != me_) return;
  sequence.pages.erase(
      std::ranges::lower_bound(sequence.pages, change.position, {}, &LocalPage::logical));
}

}  // namespace kvmesh
