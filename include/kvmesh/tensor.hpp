// A view of somebody else's numbers: pointer, element type, shape, strides, device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kvmesh/types.hpp"

namespace kvmesh {

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  friend bool operator==(Device, Device) = default;
};

/// Non-owning, trivially copyable. Strides count elements, not bytes; the last dimension of every
/// tensor that kvmesh takes is contiguous (stride 1). `Pointer` is `void*` or `const void*`.
template <class Pointer>
struct BasicTensorView {
  static constexpr int kMaxDims = 4;

  Pointer data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int dims = 0;
  std::array<std::int64_t, kMaxDims> shape{};
  std::array<std::int64_t, kMaxDims> strides{};
  Device device{};

  BasicTensorView() = default;

  /// Contiguous, row-major.
  BasicTensorView(Pointer data, Dtype dtype, std::initializer_list<std::int64_t> shape,
                  Device device = {})
      : data(data), dtype(dtype), dims(static_cast<int>(shape.size())), device(device) {
    int i = 0;
    for (std::int64_t extent : shape) this->shape[static_cast<std::size_t>(i++)] = extent;
    std::int64_t stride = 1;
    for (i = dims - 1; i >= 0; --i) {
      strides[static_cast<std::size_t>(i)] = stride;
      stride *= this->shape[static_cast<std::size_t>(i)];
    }
  }

  /// With the caller's strides.
  BasicTensorView(Pointer data, Dtype dtype, std::initializer_list<std::int64_t> shape,
                  std::initializer_list<std::int64_t> strides, Device device = {})
      : BasicTensorView(data, dtype, shape, device) {
    int i = 0;
    for (std::int64_t stride : strides) this->strides[static_cast<std::size_t>(i++)] = stride;
  }

  /// A view to write through is also a view to read through.
  operator BasicTensorView<const void*>() const
    requires(!std::is_same_v<Pointer, const void*>)
  {
    BasicTensorView<const void*> view;
    view.data = data;
    view.dtype = dtype;
    view.dims = dims;
    view.shape = shape;
    view.strides = strides;
    view.device = device;
    return view;
  }

  std::int64_t size(int dim) const { return shape[static_cast<std::size_t>(dim)]; }
  std::int64_t stride(int dim) const { return strides[static_cast<std::size_t>(dim)]; }
  std::int64_t elements() const {
    std::int64_t count = 1;
    for (int i = 0; i < dims; ++i) count *= size(i);
    return count;
  }
  bool empty() const { return data == nullptr; }
};

using TensorView = BasicTensorView<void*>;
using ConstTensorView = BasicTensorView<const void*>;

/// A contiguous float32 tensor over `data`.
inline TensorView tensor(float* data, std::initializer_list<std::int64_t> shape) {
  return {data, Dtype::kFloat32, shape};
}
inline ConstTensorView tensor(const float* data, std::initializer_list<std::int64_t> shape) {
  return {data, Dtype::kFloat32, shape};
}

/// "float32 [12, 8, 64]", for error messages.
std::string describe(const ConstTensorView& view);

}  // namespace kvmesh
