// A page that a task reads, on the CPU and on a device. One text for the host, nvcc and NVRTC,
// which needs only <cstdint>.
#pragma once

#include <cstdint>

namespace kvmesh {

/// 8 bytes, the size of one asynchronous copy: a plan may have millions of visits.
struct alignas(8) PageVisit {
  std::int32_t page;
  std::uint32_t logical : 30;
  std::uint32_t masked : 1;  ///< some row may not see all of the page's keys
  std::uint32_t mixed : 1;   ///< the plan's head_classes has a class for each head
};

/// The most pages of a sequence, so that `logical` can number them.
inline constexpr std::int64_t kMostPages = std::int64_t{1} << 30;

}  // namespace kvmesh
