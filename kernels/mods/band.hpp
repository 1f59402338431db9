// Masks that depend on nothing but how far a key is behind its query.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/mods/graph.hpp"

namespace kvmesh {

/// A query at position q sees the keys of the positions q - kv in [begin, end): causal is [0, 2^31
/// - 1), a causal window of n positions [0, n).
struct MaskBand {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  friend bool operator==(MaskBand, MaskBand) = default;
};

/// Returns the band of a mask that is one, for all positions of queries and keys in [0, 2^31 - 1);
/// empty if it is none, or was not recognised. Takes microseconds.
std::optional<MaskBand> band_of(const ModGraph& mask);

}  // namespace kvmesh
