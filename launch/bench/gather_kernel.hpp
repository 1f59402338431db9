// A kernel that reads paged keys and values and does nothing else.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "launch/bench/gather_part.hpp"

namespace kvmesh::bench {

/// Sizes are in units of 16 bytes.
struct GatherPlane {
  const uint4* pool = nullptr;  ///< [pages, heads, page_units]
  std::int32_t page_units = 0;  ///< of one head
  std::int32_t token_units = 0;
};

struct GatherRows {
  uint4* data = nullptr;
  std::int64_t units = 0;
};

struct GatherParams {
  GatherPlane planes[2]{};  ///< keys, values; the second is empty for latent pages
  const std::int32_t* pages = nullptr;
  const GatherPart* parts = nullptr;  ///< [part_count]
  std::int32_t part_count = 0;
  std::int32_t heads = 0;
  const uint4* q = nullptr;  ///< [q_units], read
  std::int64_t q_units = 0;
  GatherRows out[2]{};           ///< overwritten
  unsigned* counters = nullptr;  ///< [2], zero before a launch and again after it
  unsigned* sum = nullptr;       ///< combined with all 32-bit words read by exclusive or
};

/// Asynchronous on the stream; may be captured. REQUIRES: no two launches with the same counters
/// run at the same time.
void launch_gather(const GatherParams& params, int blocks, cudaStream_t stream);

}  // namespace kvmesh::bench
