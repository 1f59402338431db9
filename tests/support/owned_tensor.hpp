// Tensors for tests: they own their memory, have any layout, and are NaN until written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "core/numbers/half.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh::test {

/// A tensor's layout. Default: row-major without gaps.
struct Layout {
  std::vector<int> order{};      ///< dimensions, outermost first; the last stays last
  std::int64_t gap = 0;          ///< unused elements after each row of the last dimension
  std::vector<int> broadcast{};  ///< dimensions with stride 0: all their entries are one
};

class OwnedTensor {
 public:
  OwnedTensor(Dtype dtype, std::vector<std::int64_t> shape, const Layout& layout = {}) {
    view_.dtype = dtype;
    view_.dims = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), view_.shape.begin());
    std::vector<int> order = layout.order;
    if (order.empty()) {
      order.resize(shape.size());
      std::iota(order.begin(), order.end(), 0);
    }
    std::int64_t stride = 1;
    for (std::size_t i = order.size(); i-- > 0;) {
      const auto dim = static_cast<std::size_t>(order[i]);
      const bool broadcast = std::ranges::count(layout.broadcast, order[i]) > 0;
      view_.strides[dim] = broadcast ? 0 : stride;
      if (!broadcast) stride *= shape[dim];
      if (i == order.size() - 1) stride += layout.gap;
    }
    // 0xFF in every byte is a NaN in float32, float16 and bfloat16.
    bytes_.assign(static_cast<std::size_t>(std::max<std::int64_t>(stride, 1)) * size_bytes(dtype),
                  std::byte{0xFF});
  }

  TensorView view() {
    TensorView view = view_;
    view.data = bytes_.data();
    return view;
  }
  std::int64_t size(int dim) const { return view_.size(dim); }

  template <class... Index>
  float at(Index... index) const {
    return load_element(bytes_.data(), view_.dtype, offset(index...));
  }
  /// Stores `value`, rounded to the dtype.
  template <class... Index>
  void set(float value, Index... index) {
    store_element(bytes_.data(), view_.dtype, offset(index...), value);
  }

  /// Number of elements whose bits have changed since construction.
  std::int64_t written() const {
    const std::size_t width = size_bytes(view_.dtype);
    std::int64_t count = 0;
    for (std::size_t i = 0; i < bytes_.size(); i += width) {
      count += std::any_of(bytes_.begin() + static_cast<std::ptrdiff_t>(i),
                           bytes_.begin() + static_cast<std::ptrdiff_t>(i + width),
                           [](std::byte b) { return b != std::byte{0xFF}; });
    }
    return count;
  }
  friend bool operator==(const OwnedTensor& a, const OwnedTensor& b) {
    return a.bytes_ == b.bytes_;
  }

 private:
  template <class... Index>
  std::int64_t offset(Index... index) const {
    std::int64_t at = 0;
    std::size_t dim = 0;
    ((at += static_cast<std::int64_t>(index) * view_.strides[dim++]), ...);
    return at;
  }

  TensorView view_;
  std::vector<std::byte> bytes_;
};

}  // namespace kvmesh::test
