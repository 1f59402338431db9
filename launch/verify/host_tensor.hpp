// Tensors of any element type, to give to kvmesh and to compare with what it gives back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvmesh/combine.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh::verify {

/// `value` as `dtype` stores it: the nearest number, ties to the even one.
float rounded_to(Dtype dtype, float value);

/// A tensor [rows, heads, dim] that owns its memory. Rows and heads lie further apart than they
/// need to, so that code which ignores strides is noticed; all of it starts as NaN. `device` can
/// read and write it too.
class HostTensor {
 public:
  HostTensor(Dtype dtype, std::int64_t rows, std::int64_t heads, std::int64_t dim,
             Device device = {});

  float get(std::int64_t row, std::int64_t head, std::int64_t d) const;
  /// Rounds to the dtype.
  void set(std::int64_t row, std::int64_t head, std::int64_t d, float value);

  /// [rows, heads, dim]
  TensorView view() { return view({0, heads_}); }
  /// [rows, some heads, dim]
  TensorView view(Share heads);
  /// [rows, heads] of a tensor with dim 1.
  TensorView matrix();

  /// Is everything between the rows and heads still NaN?
  bool gaps_untouched() const;

  std::int64_t rows() const { return rows_; }
  std::int64_t heads() const { return heads_; }
  std::int64_t dim() const { return dim_; }
  Dtype dtype() const { return dtype_; }

 private:
  std::int64_t offset(std::int64_t row, std::int64_t head, std::int64_t d) const {
    return row * row_stride_ + head * head_stride_ + d;
  }
  float read(std::int64_t offset) const;

  Dtype dtype_;
  std::int64_t rows_, heads_, dim_, head_stride_, row_stride_;
  std::byte* bytes() const { return static_cast<std::byte*>(memory_.data()); }

  Device device_;
  DeviceMemory memory_;
};

}  // namespace kvmesh::verify
