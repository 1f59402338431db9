// What every maker of block masks asks of a shape.
#pragma once

#include "kvmesh/block_mask.hpp"

namespace kvmesh {

/// @throws InvalidArgument on a length, count or block below 1, past int32, or with `q_start` of
/// another size than `batch`.
void check_block_mask_shape(const BlockMaskShape& shape);

/// Position of a batch row's first query.
inline std::int32_t q_start(const BlockMaskShape& shape, std::int64_t b) {
  return shape.q_start.empty() ? 0 : shape.q_start[static_cast<std::size_t>(b)];
}

}  // namespace kvmesh
