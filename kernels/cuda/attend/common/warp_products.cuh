// Shared by the kernels that multiply by mma.sync: 16-bit rows in shared memory, products, and
// barriers of the warps that share keys.
//
// Constants (namespace kvmesh), beside rows.cuh's: kDimK, kDimV, kPoolType, kQueryType,
// kQueryVectors (16-byte loads of queries are possible), kRowWarps (warps that share keys),
// kKeyWarps, kStepKeys, kStages, kBlocksPerSm, kOverlaps.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/common/shared_rows.hpp"

namespace kvmesh::cuda {

constexpr int kPaddedK = padded_dim(kDimK);
constexpr int kPaddedV = padded_dim(kDimV);
constexpr SharedRows kRowsK{kDimK};
constexpr SharedRows kRowsV{kDimV};
constexpr int kStepThreads = 32 * kRowWarps;  // threads that share keys

static_assert(kRowWarps == 1 || kKeyWarps == 1, "warps share their keys or split them");
static_assert(kPoolType != Dtype::kFloat32, "tensor cores here take 16-bit elements");
static_assert(kDimK % 8 == 0 && kDimV % 8 == 0, "rows are copied by 16 bytes");
static_assert(kStepThreads >= kStepKeys, "one thread fetches one visit");

// Computed where they are used, which saves a register.
__device__ inline int warp() { return opaque(threadIdx.x) / 32; }
__device__ inline int lane() { return opaque(threadIdx.x) % 32; }

__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                           std::uint32_t b1) {
  if constexpr (kPoolType == Dtype::kFloat16) {
    mma_m16n8k16_f16(c, a, b0, b1);
  } else {
    mma_m16n8k16_bf16(c, a, b0, b1);
  }
}

/// A barrier of the threads that share keys: they all see what each wrote or copied.
__device__ inline void step_sync() {
  if constexpr (kRowWarps == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

/// Eight elements of the queries as the pool's type.
__device__ inline uint4 load_queries_at(const AttendParams& p, std::int64_t at) {
  if constexpr (kQueryVectors && kQueryType == kPoolType) {
    return *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(p.q) + at);
  } else {
    return load_unit<kQueryType, kPoolType>(p.q, at);
  }
}

/// Copies the queries of rows [first_row, first_row + Rows) of a task to shared memory, in the
/// layout of kRowsK; rows past the task's last are 0. By all `Threads` threads of a block, which
/// see them on return.
template <int Rows, int Threads>
__device__ inline void copy_queries(const AttendParams& p, const DeviceTask& task, int first_row,
                                    char* queries) {
  constexpr int kUnits = kPaddedK / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < Rows * kUnits; i += Threads) {
    const int r = first_row + i / kUnits;
    const int unit = i % kUnits;
    uint4 bits = {0, 0, 0, 0};
    if (r < task.rows && (kDimK % 16 == 0 || unit * 8 < kDimK)) {
      bits =
          load_queries_at(p, token_of(p, task, r) * p.q_token_stride +
                                 (task.kv_head * kGroup + r % kGroup) * p.q_head_stride + unit * 8);
    }
    *reinterpret_cast<uint4*>(queries + kRowsK.unit(0, i / kUnits, unit)) = bits;
  }
  __syncthreads();
}

}  // namespace kvmesh::cuda
