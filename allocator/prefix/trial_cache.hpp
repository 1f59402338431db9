// The hits that a cache with other credits would have.
#pragma once

#include <array>
#include <cstdint>

#include "allocator/prefix/open_waits.hpp"

namespace kvmesh {

/// A cache of the same uses with credits of its own, without the pages: of each kind it holds those
/// whose wait started in its first cell or later. What is evicted is the first cell of the kind
/// that counts as used least. A page before which a part of its prefix is missing counts, too.
class TrialCache {
 public:
  using Credits = std::array<std::int64_t, OpenWaits::kKinds>;  // [kind], in cells

  bool holds(int kind, std::uint64_t cell) const {
    return cell >= first_[static_cast<std::size_t>(kind)];
  }
  /// There is one wait more that started in this cell.
  void add(int kind, std::uint64_t cell) { held_ += holds(kind, cell) ? 1 : 0; }
  void take(int kind, std::uint64_t cell) { held_ -= holds(kind, cell) ? 1 : 0; }
  /// Evicts until it holds at most this many pages, or none of a cell before the current one.
  void shrink(const OpenWaits& waits, std::uint64_t pages, const Credits& credits);
  /// The counts of the cell before this one are not kept any more.
  void forget(std::uint64_t first, const OpenWaits::Counts& counts);

 private:
  std::array<std::uint64_t, OpenWaits::kKinds> first_{};  // [kind]
  std::uint64_t held_ = 0;
};

}  // namespace kvmesh
