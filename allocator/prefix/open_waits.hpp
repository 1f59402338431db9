// The waits of pages for their next use that have not ended.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvmesh {

/// Counts the waits that have not ended by the kind of page, and by the cell of time in which they
/// started. Cells are numbered from 0; the counts of the last `cells` are kept.
class OpenWaits {
 public:
  static constexpr std::size_t kKinds = 5;
  using Counts = std::array<std::uint32_t, kKinds>;  // [kind]

  explicit OpenWaits(std::size_t cells) : cells_(cells), counts_(std::bit_ceil(cells)) {}

  std::uint64_t current() const { return current_; }
  /// The first cell whose counts are kept.
  std::uint64_t first() const { return current_ < cells_ ? 0 : current_ + 1 - cells_; }
  /// REQUIRES: first() <= cell <= current().
  const Counts& operator[](std::uint64_t cell) const { return counts_[place(cell)]; }

  /// Counts a wait. REQUIRES: first() <= cell <= current().
  void add(int kind, std::uint64_t cell) { ++at(cell, kind); }
  /// Takes a wait back. Returns false if there is none.
  bool take(int kind, std::uint64_t cell) {
    if (cell + cells_ <= current_) return false;
    std::uint32_t& count = at(cell, kind);
    if (count == 0) return false;
    --count;
    return true;
  }
  /// Begins the next cell. Returns the counts of the cell that is not kept any more.
  Counts advance() {
    ++current_;
    return current_ < cells_ ? Counts{} : std::exchange(counts_[place(current_ - cells_)], {});
  }

 private:
  std::size_t place(std::uint64_t cell) const { return cell & (counts_.size() - 1); }
  std::uint32_t& at(std::uint64_t cell, int kind) {
    return counts_[place(cell)][static_cast<std::size_t>(kind)];
  }

  std::size_t cells_;
  std::vector<Counts> counts_;  // [place(cell)]
  std::uint64_t current_ = 0;
};

}  // namespace kvmesh
