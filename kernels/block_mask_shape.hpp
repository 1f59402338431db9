// Checks of the shapes of block masks.
#pragma once

#include "kvmesh/block_mask.hpp"

namespace kvmesh {

/// @throws InvalidArgument for a length, count or block below 1 or past int32, and if `q_start` has
/// another size than `batch`.
void check_block_mask_shape(const BlockMaskShape& shape);

/// Position of a batch row's first query.
inline std::int32_t q_start(const BlockMaskShape& shape, std::int64_t b) {
  return shape.q_start.empty() ? 0 : shape.q_start[static_cast<std::size_t>(b)];
}

}  // namespace kvmesh
