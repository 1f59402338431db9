// The part of a tile that a mask leaves. One text for the host, nvcc and NVRTC, which needs only
// <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

enum class TileClass : std::uint8_t {
  kEmpty,    ///< no (query, key) pair of the tile is visible
  kPartial,  ///< some pairs are visible
  kFull,     ///< all pairs are visible
  kMixed,    ///< the query heads of a group differ; used only while a device plans
};

}  // namespace kvmesh
