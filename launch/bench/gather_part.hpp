// For the host and for nvcc.
#pragma once

#include <cstdint>

namespace kvmesh::bench {

/// Consecutive tokens of one sequence. A piece of a gather is a part and a head.
struct GatherPart {
  std::int32_t first = 0;  ///< place of its first page in the list of pages
  std::int32_t tokens = 0;
};

}  // namespace kvmesh::bench
