// The local pages that a device's lists already have.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/page.hpp"

namespace kvmesh {

/// Follows the allocator's change log for a device that keeps a list of local pages per sequence.
/// Without an allocator it keeps a copy of each list, to compare the next one with.
/// REQUIRES: the allocator outlives it.
class SentPages {
 public:
  explicit SentPages(PageAllocator* allocator) : allocator_(allocator) {
    if (allocator != nullptr) cursor_ = allocator->follow();
  }

  /// Reads the new entries of the log. Calls `erase(slot)` for each list of an erased sequence, and
  /// for all lists if the log has lost changes.
  template <class Erase>
  void follow(Erase&& erase) {
    while (allocator_ != nullptr) {
      const ChangeRun run = allocator_->read_changes(cursor_);
      if (run.lost) {
        for (std::size_t slot = 0; slot < lists_.size(); ++slot)
          if (forget(slot)) erase(slot);
      } else if (run.changes.empty()) {
        return;
      }
      for (const Change& change : run.changes) {
        const std::size_t slot = change.sequence.slot();
        if (change.kind == ChangeKind::kErased) {
          if (forget(slot)) erase(slot);
        } else if (change.kind == ChangeKind::kReplaced || change.kind == ChangeKind::kDropped ||
                   change.kind == ChangeKind::kReleased) {
          changed(slot, change.position);
        }
      }
    }
  }

  /// Returns how many leading pages of `pages` the device's list has already, unchanged. Returns 0
  /// for a list whose first pages were released: a window has few pages, and they change with each
  /// page of tokens.
  std::size_t kept(std::size_t slot, std::span<const LocalPage> pages) const;
  /// Notes that the list now has `pages`.
  void sent(std::size_t slot, std::span<const LocalPage> pages);
  /// Notes that the device dropped the list of `slot`, or will. Returns whether it had one.
  bool forget(std::size_t slot);

 private:
  static constexpr std::int32_t kUnchanged = INT32_MAX;
  struct List {
    bool on_device = false;
    std::size_t count = 0;                // pages that the device has
    std::int32_t unchanged = kUnchanged;  // pages before this logical page are as they were sent
    std::vector<LocalPage> copy{};        // without an allocator: the pages
  };
  void changed(std::size_t slot, std::int32_t position);

  const PageAllocator* allocator_;
  ChangeCursor cursor_;
  std::vector<List> lists_;  // [slot]
};

}  // namespace kvmesh
