// A view of memory that the caller owns: pointer, element type, shape, strides, device.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kvmesh/api.h"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  friend bool operator==(Device, Device) = default;
};

/// Internal, for the constructors of views. @throws InvalidArgument.
[[noreturn]] void throw_wrong_extents(std::size_t extents, std::size_t strides, int most);
/// Internal, for `tensor`. @throws InvalidArgument.
[[noreturn]] void throw_not_16_bits(Dtype dtype);

/// Non-owning, trivially copyable. Strides count elements, not bytes, and are not negative. The
/// last dimension of every tensor that kvmesh takes, except an LSE, is contiguous (stride 1).
/// `Pointer` is `void*` or `const void*`; the address is a multiple of the element's size.
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

  /// A contiguous, row-major view. @throws InvalidArgument if there are more than kMaxDims extents.
  BasicTensorView(Pointer pointer, Dtype type, std::initializer_list<std::int64_t> extents,
                  Device where = {})
      : data(pointer), dtype(type), dims(static_cast<int>(extents.size())), device(where) {
    if (extents.size() > kMaxDims) throw_wrong_extents(extents.size(), extents.size(), kMaxDims);
    std::copy(extents.begin(), extents.end(), shape.begin());
    std::uint64_t stride = 1;  // may wrap around: functions that take a view check it
    for (auto i = static_cast<std::size_t>(dims); i-- > 0;) {
      strides[i] = static_cast<std::int64_t>(stride);
      stride *= static_cast<std::uint64_t>(shape[i]);
    }
  }

  /// A view with the caller's strides, one per extent.
  /// @throws InvalidArgument if there are more than kMaxDims extents, or another number of strides.
  BasicTensorView(Pointer pointer, Dtype type, std::initializer_list<std::int64_t> extents,
                  std::initializer_list<std::int64_t> steps, Device where = {})
      : BasicTensorView(pointer, type, extents, where) {
    if (steps.size() != extents.size()) throw_wrong_extents(extents.size(), steps.size(), kMaxDims);
    std::copy(steps.begin(), steps.end(), strides.begin());
  }

  /// A writable view converts to a read-only view.
  operator BasicTensorView<const void*>() const requires(!std::is_same_v<Pointer, const void*>) {
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

/// Returns a view of a contiguous float32 tensor in host memory.
inline TensorView tensor(float* data, std::initializer_list<std::int64_t> shape) {
  return {data, Dtype::kFloat32, shape};
}
inline ConstTensorView tensor(const float* data, std::initializer_list<std::int64_t> shape) {
  return {data, Dtype::kFloat32, shape};
}
/// Returns a view of a contiguous tensor of 16-bit elements in host memory: of any type of that
/// size, __nv_bfloat16, std::float16_t, or uint16_t for the bits.
/// @throws InvalidArgument if `dtype` does not have 16 bits.
template <class T>
requires(sizeof(T) == 2) auto tensor(T* data, Dtype dtype,
                                     std::initializer_list<std::int64_t> shape) {
  using View = std::conditional_t<std::is_const_v<T>, ConstTensorView, TensorView>;
  if (size_bytes(dtype) != sizeof(T)) throw_not_16_bits(dtype);
  return View(data, dtype, shape);
}

/// "float32 [12, 8, 64]", for error messages.
std::string describe(const ConstTensorView& view);
/// "host memory", "memory of GPU 1".
std::string describe(Device device);

}  // namespace kvmesh
