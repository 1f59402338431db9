// The value of a mask over whole ranges of queries and keys, from the ranges alone.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/mods/graph.hpp"

namespace kvmesh {

/// Positions [begin, end), not empty.
struct PositionRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  friend bool operator==(PositionRange, PositionRange) = default;
};

/// Interval arithmetic over a mask's graph. Returns the value that the mask has for every query of
/// `q` and key of `kv` if the ranges prove one; otherwise nothing, and it may have one or both.
/// Takes tens of nanoseconds for the usual masks. A captured buffer costs one pass over the slice
/// that the ranges can reach, if that is short; a longer slice proves nothing.
std::optional<bool> proved_value(const ModGraph& mask, std::int32_t b, std::int32_t h,
                                 PositionRange q, PositionRange kv);

}  // namespace kvmesh
