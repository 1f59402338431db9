#include "core/tensors/copy_tensor.hpp"

#include <algorithm>
#include <limits>

namespace kvmesh {
namespace {

// The largest distance between rows that CUDA's two-dimensional copies take.
constexpr std::int64_t kMostPitch = std::numeric_limits<std::int32_t>::max();

/// A tensor's rows: [tokens, heads] of `width` bytes each, strides in bytes.
template <class Byte>
struct Grid {
  template <class View>
  explicit Grid(const View& view)
      : data(static_cast<Byte*>(view.data)),
        width((view.dims == 3 ? view.size(2) : 1) * element(view)),
        count{view.size(0), view.size(1)},
        stride{view.stride(0) * element(view), view.stride(1) * element(view)} {}

  static std::int64_t element(const ConstTensorView& view) {
    return static_cast<std::int64_t>(size_bytes(view.dtype));
  }
  /// Whether rows along `axis` can be the rows of a rectangle.
  bool has_pitch(int axis, std::int64_t row_bytes) const {
    return count[axis] <= 1 || (stride[axis] >= row_bytes && stride[axis] <= kMostPitch);
  }
  std::size_t pitch(int axis, std::int64_t row_bytes) const {
    return static_cast<std::size_t>(count[axis] <= 1 ? row_bytes : stride[axis]);
  }
  Byte* row(std::int64_t token, std::int64_t head) const {
    return data + token * stride[0] + head * stride[1];
  }
  /// The rows of a token without gaps.
  bool is_dense() const { return count[1] <= 1 || stride[1] == width; }

  Byte* data;
  std::int64_t width;
  std::int64_t count[2];
  std::int64_t stride[2];
};

using GridTo = Grid<std::byte>;
using GridFrom = Grid<const std::byte>;

Rows rectangle(const GridTo& to, const GridFrom& from, std::int64_t token, std::int64_t head,
               int axis, std::int64_t width, std::int64_t count) {
  Rows rows{.to = to.row(token, head),
            .to_pitch = to.pitch(axis, width),
            .from = from.row(token, head),
            .from_pitch = from.pitch(axis, width),
            .width = static_cast<std::size_t>(width),
            .count = static_cast<std::size_t>(count)};
  const bool has_gaps = rows.to_pitch != rows.width || rows.from_pitch != rows.width;
  if (has_gaps || width * count > kMostPitch) return rows;
  rows.width *= rows.count;  // one row: a device copies many short ones slowly
  rows.to_pitch = rows.from_pitch = rows.width;
  rows.count = 1;
  return rows;
}

}  // namespace

std::vector<Rows> rectangles(const TensorView& to_view, const ConstTensorView& from_view) {
  const GridTo to(to_view);
  const GridFrom from(from_view);
  const std::int64_t tokens = from.count[0], heads = from.count[1];
  const auto both = [&](int axis, std::int64_t width) {
    return to.has_pitch(axis, width) && from.has_pitch(axis, width);
  };
  std::vector<Rows> all;
  if (to_view.elements() == 0) return all;
  if (to.is_dense() && from.is_dense() && both(0, heads * from.width)) {
    all.push_back(rectangle(to, from, 0, 0, 0, heads * from.width, tokens));
  } else if (both(1, from.width) && (tokens <= heads || !both(0, from.width))) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      all.push_back(rectangle(to, from, t, 0, 1, from.width, heads));
    }
  } else if (both(0, from.width)) {
    for (std::int64_t h = 0; h < heads; ++h) {
      all.push_back(rectangle(to, from, 0, h, 0, from.width, tokens));
    }
  } else {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto width = static_cast<std::size_t>(from.width);
        all.push_back({to.row(t, h), width, from.row(t, h), width, width, 1});
      }
    }
  }
  return all;
}

void copy_tensor(const TensorView& to, const ConstTensorView& from, Device device, Stream stream) {
  for (const Rows& rows : rectangles(to, from)) copy_rows(rows, device, stream);
}

}  // namespace kvmesh
