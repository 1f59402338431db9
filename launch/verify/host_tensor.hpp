// Tensors of any element type, as inputs of kvmesh and for the comparison of its outputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvmesh/combine.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/page_format.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh::verify {

/// Returns `value` as `dtype` stores it: the nearest number, ties to the even one; in float8 the
/// largest number for values past it.
float rounded_to(Dtype dtype, float value);

/// A row of a token and head as pages of `dtype` store it, read back; `number` is its scale unless
/// each row has its own. REQUIRES: finite numbers.
std::vector<float> stored_row(std::vector<float> row, Dtype dtype, const KvScales& scales,
                              float number);

/// A tensor [rows, heads, dim] that owns its memory, on the host and, where `device` is a GPU, a
/// copy on that. Rows and heads lie further apart than they need to, so that code which ignores
/// strides is noticed; all of it starts as NaN.
class HostTensor {
 public:
  HostTensor(Dtype dtype, std::int64_t rows, std::int64_t heads, std::int64_t dim,
             Device device = {});

  float get(std::int64_t row, std::int64_t head, std::int64_t d) const;
  /// The `dim()` elements of a row's head.
  std::vector<float> elements(std::int64_t row, std::int64_t head) const;
  /// Rounds to the dtype.
  void set(std::int64_t row, std::int64_t head, std::int64_t d, float value);
  /// Gives row `to` the elements of row `from`.
  void copy_row(std::int64_t from, std::int64_t to);

  /// Returns [rows, some heads, dim], on the host.
  TensorView view(IndexRange heads) const { return view_at(bytes(), heads, {}); }
  TensorView view() const { return view({0, heads_}); }
  /// Returns [rows, heads] of a tensor with dim 1, on the host.
  TensorView matrix() const { return matrix_of(view()); }

  /// The same on the device, with the host's present contents; on the CPU the host's own.
  TensorView on_device(IndexRange heads);
  TensorView on_device() { return on_device({0, heads_}); }
  TensorView matrix_on_device() { return matrix_of(on_device()); }
  /// Copies the device's contents back. REQUIRES: the device is done with it.
  void fetch();

  /// True if everything between the rows and heads is still NaN.
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
  std::byte* bytes() const { return static_cast<std::byte*>(host_.data()); }
  TensorView view_at(void* data, IndexRange heads, Device device) const;
  static TensorView matrix_of(const TensorView& view);

  Dtype dtype_;
  std::int64_t rows_, heads_, dim_, head_stride_, row_stride_;
  Device device_;
  DeviceMemory host_;
  DeviceMemory there_;  // empty on the CPU
};

}  // namespace kvmesh::verify
