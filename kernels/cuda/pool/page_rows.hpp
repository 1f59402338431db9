// The kernel that moves pages in all planes at once. Compiled by nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/page_moves.hpp"

namespace kvmesh::cuda {

struct PlacedMove {
  PageMove move;
  std::int64_t packed;  // where its rows begin in PageRowsParams::packed
};

struct PageRowsParams {
  const MovedPlane* planes;  // [plane_count]
  const PlacedMove* moves;   // [move_count]
  std::byte* packed;         // the end that is no pool
  std::int64_t page_size;
  std::int64_t largest_page;  // bytes of a page in the plane that has the largest; over 0
  std::int32_t heads;
  std::int32_t plane_count;
  std::int32_t move_count;
};

cudaError_t load_page_kernel();
/// REQUIRES: no move reads what another writes.
cudaError_t launch_page_rows(const PageRowsParams& params, cudaStream_t stream);

}  // namespace kvmesh::cuda
