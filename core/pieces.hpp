// Memory that is given piece by piece at addresses that are reserved once.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kvmesh {

/// The bytes [first, last).
struct ByteRange {
  std::size_t first = 0;
  std::size_t last = 0;
  friend auto operator<=>(const ByteRange&, const ByteRange&) = default;
};

struct PieceChanges {
  std::vector<ByteRange> add{};     ///< whole granules, in order
  std::vector<ByteRange> remove{};  ///< of the pieces
};

/// Returns the pieces to add to `pieces`, so that they cover `used`, and those of them that no byte
/// of `used` needs. A piece is given and taken as a whole, so a stretch that is added is cut into
/// some pieces: part of it can be returned later.
/// REQUIRES: `pieces` are in order, in whole granules, and do not overlap.
PieceChanges piece_changes(std::span<const ByteRange> pieces, std::span<const ByteRange> used,
                           std::size_t granule);

}  // namespace kvmesh
