#include "kernels/token_rows.hpp"

#include <cstring>

namespace kvmesh {
namespace {

std::size_t bytes(const TensorView& view, std::int64_t elements) {
  return static_cast<std::size_t>(elements) * size_bytes(view.dtype);
}

/// Calls `copy(row in the page, offset in `packed`, bytes)` for each row of the tokens.
template <class Copy>
void for_each_row(const TokenPlanes& planes, std::span<const TokenSlot> slots, const Copy& copy) {
  std::size_t token = 0;
  for (const TokenSlot& slot : slots) {
    for (const TokenPlanes::Plane& plane : planes.planes()) {
      const TensorView& view = plane.view;
      const std::int64_t first = slot.page * view.stride(0) + slot.offset * view.stride(2);
      for (std::int64_t head = 0; head < planes.heads(); ++head) {
        copy(static_cast<std::byte*>(view.data) + bytes(view, first + head * view.stride(1)),
             token + plane.packed + static_cast<std::size_t>(head) * plane.row_bytes,
             plane.row_bytes);
      }
    }
    token += planes.token_bytes();
  }
}

}  // namespace

TokenPlanes::TokenPlanes(std::span<const PagePlanes> layers) {
  constexpr std::size_t kAlignment = 16;
  for (const PagePlanes& layer : layers) {
    for (const TensorView& view : layer) {
      heads_ = view.size(1);
      const std::size_t row_bytes = bytes(view, view.size(3));
      planes_.push_back({view, row_bytes, token_bytes_});
      token_bytes_ += static_cast<std::size_t>(heads_) * row_bytes;
      token_bytes_ = (token_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
    }
  }
}

void pack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots, std::byte* packed) {
  for_each_row(planes, slots, [&](const std::byte* row, std::size_t at, std::size_t size) {
    std::memcpy(packed + at, row, size);
  });
}

void unpack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                   const std::byte* packed) {
  for_each_row(planes, slots, [&](std::byte* row, std::size_t at, std::size_t size) {
    std::memcpy(row, packed + at, size);
  });
}

}  // namespace kvmesh
