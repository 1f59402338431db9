// Parameters of the Hopper kernels. One text for the host and for NVRTC.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/instructions/tensor_map.hpp"
#include "kernels/cuda/attend/plain/plain_params.hpp"

namespace kvmesh::cuda {

/// The pool's halves as [pages * kv_heads][page_size / 8][atoms][8][64], of float8 as image.hpp
/// says: a box is a page of a head. Where warps gather keys there are no maps.
struct HopperParams {
  TensorMap k_map;
  TensorMap v_map;
  AttendParams attend;
  DeviceScales scales;  // of float8 pages
  std::int32_t pool_heads;
  std::int32_t no_page;  // a first index past the end, where the copy engine reads 0
};

}  // namespace kvmesh::cuda
