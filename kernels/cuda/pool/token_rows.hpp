// The kernel that copies tokens between pages and a packed array. Compiled by nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kvmesh/page.hpp"

namespace kvmesh::cuda {

/// One plane of one layer: a row of `row_bytes` for each page, head and token.
struct PlaneRows {
  char* data;
  std::int64_t page_stride;  // in bytes, as those below
  std::int64_t head_stride;
  std::int64_t token_stride;
  std::int64_t packed;  // where a token's rows begin among those of all planes
  std::int32_t row_bytes;
  std::int32_t unit_bytes;  // 16, 4 or 1: divides all of the above
};

struct TokenRowsParams {
  const PlaneRows* planes;  // [plane_count]
  const TokenSlot* slots;   // [tokens]
  char* packed;             // [tokens, token_bytes]
  std::int64_t token_bytes;
  std::int32_t tokens;
  std::int32_t plane_count;
  std::int32_t heads;
  bool is_packing;  // pages to the array, or back
};

cudaError_t load_token_kernel();
cudaError_t launch_token_rows(const TokenRowsParams& params, cudaStream_t stream);

}  // namespace kvmesh::cuda
