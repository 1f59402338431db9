// How much of a tile a mask leaves. One text for the host, nvcc and NVRTC, which has no headers but
// <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

enum class TileClass : std::uint8_t {
  kEmpty,    ///< no (query, key) pair of the tile is visible
  kPartial,  ///< some are
  kFull,     ///< all are
  kMixed,    ///< the query heads of a group differ: used while a device plans
};

}  // namespace kvmesh
