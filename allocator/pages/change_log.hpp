// The rings behind PageAllocator's logs.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "kvmesh/change_log.hpp"

namespace kvmesh {

/// Keeps the last entries, at least `least` of them. Records nothing before there is a follower.
/// Recording never fails.
template <class Entry>
class Ring {
 public:
  explicit Ring(std::int64_t least) : capacity_(std::bit_ceil(static_cast<std::uint64_t>(least))) {}

  /// Returns the number of the next entry. Allocates the ring for the first follower.
  std::uint64_t follow() {
    entries_.resize(capacity_);
    return end_;
  }
  bool is_followed() const { return !entries_.empty(); }

  void record(const Entry& entry) {
    if (is_followed()) entries_[end_++ & (capacity_ - 1)] = entry;
  }

  std::uint64_t end() const { return end_; }
  /// Whether entry `next` was there and is no longer.
  bool has_dropped(std::uint64_t next) const { return end_ - next > capacity_; }
  /// Returns the entries from `next` on, as many as are contiguous, and moves `next` past them.
  /// REQUIRES: entry `next` was not dropped.
  std::span<const Entry> read(std::uint64_t& next) const {
    const std::uint64_t first = next & (capacity_ - 1);
    const std::uint64_t count = std::min(end_ - next, capacity_ - first);
    next += count;
    return {entries_.data() + first, count};
  }

 private:
  std::uint64_t capacity_;  // a power of two
  std::uint64_t end_ = 0;
  std::vector<Entry> entries_;
};

/// Keeps about as many changes as there are pages: for a follower that is further behind, reading
/// the tables is cheaper.
class ChangeLog {
 public:
  static constexpr std::int64_t kLeast = 1 << 10;
  static constexpr std::int64_t kMost = 1 << 18;

  explicit ChangeLog(std::int64_t pages) : ring_(std::clamp(pages, kLeast, kMost)) {}

  /// Returns a cursor at the end of the log.
  ChangeCursor follow() { return {ring_.follow()}; }
  bool is_followed() const { return ring_.is_followed(); }
  void record(const Change& change) { ring_.record(change); }

  /// Returns the next changes and moves the cursor past them; an empty span at the end. The span is
  /// valid until the next operation.
  ChangeRun read(ChangeCursor& cursor) const {
    if (ring_.has_dropped(cursor.next)) {
      cursor.next = ring_.end();
      return {.changes = {}, .lost = true};
    }
    return {.changes = ring_.read(cursor.next), .lost = false};
  }

 private:
  Ring<Change> ring_;
};

/// Keeps as many evicted pages as there are pages. An operation evicts none twice, so a follower
/// that reads after each operation misses none.
class EvictionLog {
 public:
  explicit EvictionLog(std::int64_t pages) : ring_(pages) {}

  EvictionCursor follow() { return {ring_.follow()}; }
  void record(PageId page) { ring_.record(page); }
  /// As ChangeLog::read. A follower that is too far behind reads on from the end.
  std::span<const PageId> read(EvictionCursor& cursor) const {
    if (ring_.has_dropped(cursor.next)) cursor.next = ring_.end();
    return ring_.read(cursor.next);
  }

 private:
  Ring<PageId> ring_;
};

}  // namespace kvmesh
