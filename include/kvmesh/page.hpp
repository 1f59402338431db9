// Small records about pages, for callers and kernels. One text for the host, nvcc and NVRTC, which
// has no standard headers except <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

/// A page of this rank's pool and its place in a sequence: it holds the positions [logical *
/// page_size, (logical + 1) * page_size).
struct LocalPage {
  std::int32_t page = 0;
  std::int32_t logical = 0;
  friend bool operator==(const LocalPage&, const LocalPage&) = default;
};

/// The slot of a new token on this rank. A negative page means that another rank stores the token.
struct TokenSlot {
  std::int32_t page = -1;
  std::int32_t offset = 0;
};

/// An order to copy the first `tokens` tokens of local page `source` to local page `destination`.
struct LocalPageCopy {
  std::int32_t source = 0;
  std::int32_t destination = 0;
  std::int32_t tokens = 0;
};

}  // namespace kvmesh
