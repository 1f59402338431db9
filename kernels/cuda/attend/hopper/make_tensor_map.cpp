#include "kernels/cuda/attend/hopper/make_tensor_map.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cstdlib>

#include "core/check.hpp"
#include "core/cuda/check.hpp"

namespace kvmesh::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// Looks the function up in the loaded driver: programs do not link it, so that they start without
/// one.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned kSince = 12000;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince,
                                         cudaEnableDefault, &found),
        "finding the driver's cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) {
    throw Unsupported("the CUDA driver has no cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<Encode>(function);
}

CUtensorMapDataType type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case Dtype::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case Dtype::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case Dtype::kFloat8E4M3:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
  std::abort();
}

}  // namespace

TensorMap make_tensor_map(Dtype dtype, const void* data, const TensorBoxes& boxes) {
  static const Encode encode = find_encode();
  std::array<cuuint64_t, 5> extents;
  std::array<cuuint64_t, 4> stride_bytes;
  std::array<cuuint32_t, 5> box, step;
  for (std::size_t i = 0; i < 5; ++i) {
    extents[i] = static_cast<cuuint64_t>(boxes.extents[i]);
    box[i] = static_cast<cuuint32_t>(boxes.box[i]);
    step[i] = 1;
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(boxes.strides[i]) * size_bytes(dtype);
  }
  CUtensorMap map;
  const auto row_bytes = box[0] * size_bytes(dtype);
  // L2 promotion to 256 bytes costs 6 % of a decode on an H200; 128 and none are alike.
  const CUresult status =
      encode(&map, type_of(dtype), 5, const_cast<void*>(data), extents.data(), stride_bytes.data(),
             box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             row_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS, "attention: the driver refused the pool's tensor map, status {}",
          static_cast<int>(status));
  return std::bit_cast<TensorMap>(map);
}

}  // namespace kvmesh::cuda
