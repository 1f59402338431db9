// When the priorities of pages end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "allocator/prefix/prefix_index.hpp"

namespace kvmesh {

/// A heap with the earliest end first. Each end has a stamp, which its page keeps; an end is void
/// once its page has another stamp.
class PriorityEnds {
 public:
  /// Makes room for `more` ends; drops void ones if that is enough. `stamp(slot)` returns the
  /// page's stamp. Allocates; nothing else here does.
  template <class Stamp>
  void prepare(std::size_t more, const Stamp& stamp) {
    if (ends_.size() + more <= ends_.capacity()) return;
    std::erase_if(ends_, [&](const End& end) { return stamp(end.slot) != end.stamp; });
    std::make_heap(ends_.begin(), ends_.end(), kLater);
    ends_.reserve(2 * (ends_.size() + more));
  }

  /// Returns the stamp. REQUIRES: prepared.
  std::uint32_t add(PageSlot slot, std::uint64_t at) {
    if (++last_ == 0) ++last_;
    ends_.push_back({at, slot, last_});
    std::push_heap(ends_.begin(), ends_.end(), kLater);
    return last_;
  }

  /// Calls `end(slot, stamp)` for the ends up to `now`, and drops them.
  template <class AtEnd>
  void end_until(std::uint64_t now, const AtEnd& end) {
    while (!ends_.empty() && ends_.front().at <= now) {
      std::pop_heap(ends_.begin(), ends_.end(), kLater);
      const End first = ends_.back();
      ends_.pop_back();
      end(first.slot, first.stamp);
    }
  }

  /// Records that the page of each slot s is in slot `target(s)` now.
  template <class Target>
  void move(const Target& target) {
    for (End& end : ends_) end.slot = target(end.slot);
  }

 private:
  struct End {
    std::uint64_t at = 0;
    PageSlot slot = kNoSlot;
    std::uint32_t stamp = 0;
  };
  /// Equal ends in the order in which they were added, on every rank.
  static constexpr auto kLater = [](const End& a, const End& b) {
    return a.at != b.at ? a.at > b.at : a.stamp > b.stamp;
  };

  std::vector<End> ends_;
  std::uint32_t last_ = 0;
};

}  // namespace kvmesh
