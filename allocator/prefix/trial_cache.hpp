// The hits that a cache with other credits would have.
#pragma once

#include <array>
#include <cstdint>

#include "allocator/prefix/open_waits.hpp"

namespace kvmesh {

/// Simulates a cache with the same uses and other credits, without the pages. It holds the pages of
/// a kind whose wait started in the kind's first cell or later. It evicts the first cell of the
/// kind that counts as used least recently. A page counts even if a part of the prefix before it is
/// missing.
class TrialCache {
 public:
  using Credits = std::array<std::int64_t, OpenWaits::kKinds>;  // [kind], in cells

  bool holds(int kind, std::uint64_t cell) const {
    return cell >= first_[static_cast<std::size_t>(kind)];
  }
  /// Counts one more wait that started in this cell.
  void add(int kind, std::uint64_t cell) { held_ += holds(kind, cell) ? 1 : 0; }
  void take(int kind, std::uint64_t cell) { held_ -= holds(kind, cell) ? 1 : 0; }
  /// Evicts until it holds at most this many pages, or none of a cell before the current one.
  void shrink(const OpenWaits& waits, std::uint64_t pages, const Credits& credits);
  /// Forgets the counts of the cell before `first`, which are not kept any more.
  void forget(std::uint64_t first, const OpenWaits::Counts& counts);

 private:
  std::array<std::uint64_t, OpenWaits::kKinds> first_{};  // [kind]
  std::uint64_t held_ = 0;
};

}  // namespace kvmesh
