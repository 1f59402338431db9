// Classifies a whole tile under a mask from the ranges of its inputs alone.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/mods/graph.hpp"
#include "kernels/tile_class.hpp"

namespace kvmesh {

/// Positions [begin, end), not empty.
struct PositionRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  friend bool operator==(PositionRange, PositionRange) = default;
};

/// Interval arithmetic over a mask's graph. Returns kEmpty or kFull if the ranges prove it;
/// otherwise nothing, and the tile may be of any class. Takes tens of nanoseconds for the usual
/// masks. A captured buffer costs one pass over the slice that the tile can reach, if that is
/// short; a longer slice proves nothing.
std::optional<TileClass> classify_by_interval(const ModGraph& mask, std::int32_t b, std::int32_t h,
                                              PositionRange q, PositionRange kv);

}  // namespace kvmesh
