// The ring behind PageAllocator's change log.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "kvmesh/change_log.hpp"

namespace kvmesh {

/// Keeps the last changes, about as many as there are pages: for a follower that is further behind,
/// reading the tables is cheaper. Records nothing before there is a follower. Recording never
/// fails.
class ChangeLog {
 public:
  static constexpr std::int64_t kLeast = 1 << 10;
  static constexpr std::int64_t kMost = 1 << 18;

  explicit ChangeLog(std::int64_t pages)
      : capacity_(std::bit_ceil(static_cast<std::uint64_t>(std::clamp(pages, kLeast, kMost)))) {}

  /// Returns a cursor at the end of the log. Allocates the ring for the first follower.
  ChangeCursor follow() {
    ring_.resize(capacity_);
    return {end_};
  }
  bool is_followed() const { return !ring_.empty(); }

  void record(const Change& change) {
    if (is_followed()) ring_[end_++ & (capacity_ - 1)] = change;
  }

  /// Returns the next changes, as many as are contiguous, and moves the cursor past them; an empty
  /// span at the end. The span is valid until the next operation.
  ChangeRun read(ChangeCursor& cursor) const {
    if (end_ - cursor.next > capacity_) {
      cursor.next = end_;
      return {.changes = {}, .lost = true};
    }
    const std::uint64_t first = cursor.next & (capacity_ - 1);
    const std::uint64_t count = std::min(end_ - cursor.next, capacity_ - first);
    cursor.next += count;
    return {.changes = {ring_.data() + first, count}, .lost = false};
  }

 private:
  std::uint64_t capacity_;  // a power of two
  std::uint64_t end_ = 0;
  std::vector<Change> ring_;
};

}  // namespace kvmesh
