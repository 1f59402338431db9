// Copies of tensors of rows, [tokens, heads, dim] with a contiguous last dimension or [tokens,
// heads], of any strides.
#pragma once

#include <vector>

#include "core/tensors/copy_rows.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Whether each row of [tokens, heads, dim] begins where the one before ends.
inline bool is_in_one_piece(const ConstTensorView& rows) {
  return (rows.size(1) == 1 || rows.stride(1) == rows.size(2)) &&
         (rows.size(0) == 1 || rows.stride(0) == rows.size(1) * rows.size(2));
}

/// The rectangles that make up the copy of `from` to `to`, two tensors of one shape and dtype: all
/// at once, one per token or one per head where the strides allow it, else one per row.
std::vector<Rows> rectangles(const TensorView& to, const ConstTensorView& from);

/// Copies `from` to `to`, as copy_rows does.
void copy_tensor(const TensorView& to, const ConstTensorView& from, Device device,
                 Stream stream = {});

}  // namespace kvmesh
