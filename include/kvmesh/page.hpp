// Small records of pages, as callers pass them and as kernels read them. One text for the host,
// nvcc and NVRTC, which has no headers but <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

/// A page of this rank's pool and its place in its sequence: positions
/// [logical * page_size, (logical + 1) * page_size).
struct LocalPage {
  std::int32_t page = 0;
  std::int32_t logical = 0;
  friend bool operator==(const LocalPage&, const LocalPage&) = default;
};

/// Where a new token goes on this rank; a negative page: on another rank, nothing to do here.
struct TokenSlot {
  std::int32_t page = -1;
  std::int32_t offset = 0;
};

/// Copy the first `tokens` tokens of local page `source` to local page `destination`.
struct LocalPageCopy {
  std::int32_t source = 0;
  std::int32_t destination = 0;
  std::int32_t tokens = 0;
};

}  // namespace kvmesh
