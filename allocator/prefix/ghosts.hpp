// The pages that were evicted not long ago.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace kvmesh {

/// An evicted page: its hits, whether it was an end (a page without hits that no page had
/// continued), and a time modulo kTimes.
struct Ghost {
  static constexpr std::uint32_t kTimes = 1u << 29;
  std::uint32_t hits : 2 = 0;
  std::uint32_t is_end : 1 = 0;
  std::uint32_t time : 29 = 0;
};

/// Remembers about the last `count` evictions in 8 bytes each: the hash picks a row of 8 places,
/// one cache line, that keeps its newest ones. Two hashes that agree in their row and their low 32
/// bits count as one. Never allocates.
class Ghosts {
 public:
  explicit Ghosts(std::uint64_t count) : rows_((count + kRow - 1) / kRow) {}

  void add(std::uint64_t hash, Ghost ghost) {
    if (rows_.empty()) return;
    Row& row = row_of(hash);
    std::shift_right(row.begin(), row.end(), 1);
    row[0] = {tag_of(hash), ghost};
  }
  /// Returns the page's ghost, and forgets it.
  std::optional<Ghost> take(std::uint64_t hash) {
    if (rows_.empty()) return std::nullopt;
    Row& row = row_of(hash);
    const auto place = std::ranges::find(row, tag_of(hash), &Place::tag);
    if (place == row.end()) return std::nullopt;
    const Ghost ghost = place->ghost;
    std::shift_left(place, row.end(), 1);
    row.back() = {};
    return ghost;
  }

 private:
  static constexpr std::size_t kRow = 8;
  struct Place {
    std::uint32_t tag = 0;  // 0: empty
    Ghost ghost{};
  };
  using Row = std::array<Place, kRow>;  // the newest first

  static std::uint32_t tag_of(std::uint64_t hash) { return static_cast<std::uint32_t>(hash) | 1; }
  Row& row_of(std::uint64_t hash) { return rows_[(hash >> 32) * rows_.size() >> 32]; }

  std::vector<Row> rows_;
};

}  // namespace kvmesh
