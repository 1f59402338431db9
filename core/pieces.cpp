#include "core/pieces.hpp"

#include <algorithm>

#include "core/checked.hpp"

namespace kvmesh {
namespace {

constexpr std::size_t kPiecesPerStretch = 8;

/// The granules that `used` touches, as stretches in order.
std::vector<ByteRange> stretches_of(std::span<const ByteRange> used, std::size_t granule) {
  std::vector<ByteRange> all;
  for (const ByteRange& range : used) {
    if (range.first < range.last)
      all.push_back({range.first / granule * granule, rounded_up(range.last, granule)});
  }
  std::ranges::sort(all);
  std::vector<ByteRange> merged;
  for (const ByteRange& range : all) {
    if (!merged.empty() && range.first <= merged.back().last) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

void add_pieces(const ByteRange& stretch, std::size_t granule, std::vector<ByteRange>& pieces) {
  const std::size_t size = stretch.last - stretch.first;
  const std::size_t most = rounded_up((size + kPiecesPerStretch - 1) / kPiecesPerStretch, granule);
  for (std::size_t at = stretch.first; at < stretch.last; at += most)
    pieces.push_back({at, std::min(at + most, stretch.last)});
}

}  // namespace

PieceChanges piece_changes(std::span<const ByteRange> pieces, std::span<const ByteRange> used,
                           std::size_t granule) {
  PieceChanges changes;
  const std::vector<ByteRange> stretches = stretches_of(used, granule);
  for (const ByteRange& piece : pieces) {
    const bool is_used = std::ranges::any_of(stretches, [&](const ByteRange& stretch) {
      return stretch.first < piece.last && piece.first < stretch.last;
    });
    if (!is_used) changes.remove.push_back(piece);
  }
  for (ByteRange rest : stretches) {
    for (const ByteRange& piece : pieces) {
      if (piece.last <= rest.first || piece.first >= rest.last) continue;
      if (rest.first < piece.first) add_pieces({rest.first, piece.first}, granule, changes.add);
      rest.first = std::min(piece.last, rest.last);
    }
    if (rest.first < rest.last) add_pieces(rest, granule, changes.add);
  }
  return changes;
}

}  // namespace kvmesh
