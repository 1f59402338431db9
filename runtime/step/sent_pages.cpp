#include "runtime/step/sent_pages.hpp"

#include <algorithm>

namespace kvmesh {

std::size_t SentPages::kept(std::size_t slot, std::span<const LocalPage> pages) const {
  if (slot >= lists_.size()) return 0;
  const List& list = lists_[slot];
  if (allocator_ == nullptr) {
    const auto same = std::ranges::mismatch(list.copy, pages);
    return static_cast<std::size_t>(same.in1 - list.copy.begin());
  }
  const auto first = std::ranges::lower_bound(pages, list.unchanged, {}, &LocalPage::logical);
  return std::min(list.count, static_cast<std::size_t>(first - pages.begin()));
}

void SentPages::sent(std::size_t slot, std::span<const LocalPage> pages) {
  if (slot >= lists_.size()) lists_.resize(slot + 1);
  List& list = lists_[slot];
  list.on_device = true;
  list.count = pages.size();
  list.unchanged = kUnchanged;
  if (allocator_ == nullptr) list.copy.assign(pages.begin(), pages.end());
}

bool SentPages::forget(std::size_t slot) {
  if (slot >= lists_.size() || !lists_[slot].on_device) return false;
  lists_[slot] = List();
  return true;
}

void SentPages::changed(std::size_t slot, std::int32_t position) {
  if (slot >= lists_.size()) return;
  lists_[slot].unchanged = std::min(lists_[slot].unchanged, position);
}

}  // namespace kvmesh
