// Queries over float8 pages: float16, whatever they were. Each row is divided by a power of two, so
// that its largest element is near 2^15: elements down to 2^-39 of that are not 0 then, and none is
// infinite that was not. Rows are not rounded otherwise but to float16's 11 bits.
//
// In each 16 dims pairs 0, 2, 4, 6 come first, then pairs 1, 3, 5, 7: the order in which
// float8_rows.cuh has the dims of keys.
//
// Constants of the kernel (namespace kvmesh), beside those of attend/common: kDimK, kRows,
// kQueryType, kQueryVectors (16-byte loads of queries are possible).
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/common/query_scale.cuh"
#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/hopper/instructions/image.hpp"
#include "kernels/cuda/attend/plain/task_scale.cuh"

namespace kvmesh::cuda {

/// 16 elements of queries from number `at` on.
__device__ inline void load_query_part(const void* q, std::int64_t at, float (&to)[16]) {
  if constexpr (!kQueryVectors) {
#pragma unroll
    for (int i = 0; i < 16; ++i) to[i] = load_element<kQueryType>(q, at + i);
  } else if constexpr (kQueryType == Dtype::kFloat32) {
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(q) + at + i);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 16; i += 8) {
      const uint4 eight =
          *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(q) + at + i);
      const std::uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        to[i + 2 * p] = unpack_half<kQueryType, 0>(pairs[p]);
        to[i + 2 * p + 1] = unpack_half<kQueryType, 1>(pairs[p]);
      }
    }
  }
}

/// Warps copy the rows of a task, eight each at a time; four lanes share one. Rows past the task's
/// are 0: their scores are computed and never stored. `queries` is the shared address of their
/// image, `factors` [kRows] gets the divisors, times the scale of the keys if they have one.
class ScaledQueries {
 public:
  __device__ ScaledQueries(const AttendParams& params, const DeviceScale& keys,
                           std::uint32_t queries, float* factors)
      : p_(params), keys_(keys), queries_(queries), factors_(factors) {}

  /// The part of warp `warp` of this many.
  __device__ void load(const DeviceTask& task, int warp, int warps) const {
    const float key_scale = task_scale(keys_, task);
#pragma unroll 1
    for (int r = warp * 8 + lane() / 4; r < kRows; r += 8 * warps) load_row(task, r, key_scale);
  }

 private:
  static constexpr KvImage kImage{kDimK};
  static constexpr int kParts = kDimK / 64;  // of 16 elements a lane: parts lane % 4, + 4, ...
  // Longer rows are read twice, since registers do not hold them: for their largest element, and to
  // be scaled.
  static constexpr bool kIsKept = kParts <= 4;
  // The second time they are near, and come a few parts at a time.
  static constexpr int kPartsAtOnce = kIsKept ? kParts : 3;

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int part(int i) { return i * 4 + lane() % 4; }

  __device__ void read(const DeviceTask& task, int r, int i, float (&to)[16]) const {
    const bool is_there = r < task.rows;
    const int row = is_there ? r : 0;
    const std::int64_t at = token_of(p_, task, row) * p_.q_token_stride +
                            (task.kv_head * kGroup + row % kGroup) * p_.q_head_stride;
    load_query_part(p_.q, at + part(i) * 16, to);
#pragma unroll
    for (int n = 0; n < 16; ++n) to[n] = is_there ? to[n] : 0.0f;
  }

  __device__ void load_row(const DeviceTask& task, int r, float key_scale) const {
    float row[kIsKept ? kParts : 1][16];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      read(task, r, i, row[kIsKept ? i : 0]);
#pragma unroll
      for (int n = 0; n < 16; ++n) largest = larger_size(largest, row[kIsKept ? i : 0][n]);
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    }
    const QueryScale scale(largest);
#pragma unroll kPartsAtOnce
    for (int i = 0; i < kParts; ++i) {
      if constexpr (!kIsKept) read(task, r, i, row[0]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        put(r, part(i) * 2 + half, row[kIsKept ? i : 0], 2 * half, scale.up);
      }
    }
    if (lane() % 4 == 0) factors_[r] = scale.down * key_scale;
  }

  /// The pairs that begin at elements `first`, first + 4, ...
  __device__ void put(int r, int unit, const float (&part)[16], int first, float up) const {
    const auto pair = [&](int i) {
      return pack_pair<Dtype::kFloat16>(part[first + 4 * i] * up, part[first + 4 * i + 1] * up);
    };
    st_shared_v4(queries_ + kImage.unit(r, unit), {pair(0), pair(1), pair(2), pair(3)});
  }

  const AttendParams& p_;
  const DeviceScale& keys_;
  const std::uint32_t queries_;
  float* const factors_;
};

}  // namespace kvmesh::cuda
