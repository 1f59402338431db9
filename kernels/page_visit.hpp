// A page that a task reads, on the CPU and on a device. One text for the host, nvcc and NVRTC,
// which has no headers but <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

/// A plan may have millions of them: 8 bytes, as many as one asynchronous copy moves.
struct alignas(8) PageVisit {
  std::int32_t page;
  std::uint32_t logical : 30;
  std::uint32_t masked : 1;  ///< some row may not see all of the page's keys
  std::uint32_t mixed : 1;   ///< the plan's head_classes has the class for each head, too
};

/// Pages of a sequence, so that `logical` can number them.
inline constexpr std::int64_t kMostPages = std::int64_t{1} << 30;

}  // namespace kvmesh
