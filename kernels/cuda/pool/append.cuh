// Writes new keys and values to their slots, in one launch for a ragged batch. A thread moves one
// unit of a row: 16 bytes where dtypes agree and all addresses are aligned to that (128 x bf16: 16
// threads per row, whole 128-byte lines), else one element, converted.
//
// Constants of the kernel (namespace kvmesh): kDimK, kDimV, kNewType, kPoolType, kVectors.
#pragma once

#include "core/cuda/device/dependent_launch.cuh"
#include "kernels/cuda/common/elements.cuh"
#include "kernels/cuda/pool/params.hpp"

namespace kvmesh::cuda {

constexpr int kElementBytes = info_of(kPoolType).bits / 8;
constexpr int kUnitElements = kVectors ? 16 / kElementBytes : 1;
constexpr int kUnitsK = kDimK / kUnitElements;
constexpr int kUnitsV = kDimV / kUnitElements;

__device__ inline void write_unit(const WritablePool& pool, const NewRows& rows,
                                  const TokenSlot& slot, int token, int head, int unit) {
  const std::int64_t from =
      token * rows.token_stride + head * rows.head_stride + unit * kUnitElements;
  const std::int64_t to = slot.page * pool.page_stride + head * pool.head_stride +
                          slot.offset * pool.token_stride + unit * kUnitElements;
  if constexpr (kVectors) {
    *reinterpret_cast<uint4*>(static_cast<char*>(pool.data) + to * kElementBytes) =
        *reinterpret_cast<const uint4*>(static_cast<const char*>(rows.data) + from * kElementBytes);
  } else if constexpr (kNewType == kPoolType && kPoolType != Dtype::kFloat32) {
    // Copied as bits, so that a NaN keeps its payload.
    static_cast<std::uint16_t*>(pool.data)[to] = static_cast<const std::uint16_t*>(rows.data)[from];
  } else {
    store_element<kPoolType>(pool.data, to, load_element<kNewType>(rows.data, from));
  }
}

}  // namespace kvmesh::cuda

/// Threads: tokens * kv_heads * (units of k + units of v), in any blocks.
extern "C" __global__ void kvmesh_append(
    const __grid_constant__ kvmesh::cuda::AppendParams params) {
  using namespace kvmesh::cuda;
  griddepcontrol_wait();
  griddepcontrol_launch_dependents();
  constexpr int kUnits = kUnitsK + kUnitsV;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int unit = static_cast<int>(thread % kUnits);
  const int head = static_cast<int>(thread / kUnits % params.kv_heads);
  const std::int64_t token = thread / kUnits / params.kv_heads;
  if (token >= params.tokens) return;
  const kvmesh::TokenSlot slot = params.slots[token];
  if (slot.page < 0) return;
  if (unit < kUnitsK) {
    write_unit(params.k_pool, params.k, slot, static_cast<int>(token), head, unit);
  } else {
    write_unit(params.v_pool, params.v, slot, static_cast<int>(token), head, unit - kUnitsK);
  }
}
