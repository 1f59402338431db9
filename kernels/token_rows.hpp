// Tokens of all layers as rows that follow one another: what moves between pages and ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvmesh/page.hpp"
#include "kvmesh/page_format.hpp"

namespace kvmesh {

/// The planes of some layers, all with as many heads, and where each has its rows in a packed
/// token: plane after plane at multiples of 16 bytes, in each the heads in order.
class TokenPlanes {
 public:
  struct Plane {
    TensorView view;
    std::size_t row_bytes = 0;
    std::size_t packed = 0;  ///< offset in a packed token
  };

  explicit TokenPlanes(std::span<const PagePlanes> layers);

  const std::vector<Plane>& planes() const { return planes_; }
  std::int64_t heads() const { return heads_; }
  std::size_t token_bytes() const { return token_bytes_; }

 private:
  std::vector<Plane> planes_;
  std::int64_t heads_ = 0;
  std::size_t token_bytes_ = 0;
};

/// Copies tokens in host memory to `packed` [slots, token_bytes], and back.
void pack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots, std::byte* packed);
void unpack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                   const std::byte* packed);

}  // namespace kvmesh
