// Queries over float8 pages: float16, whatever they were. Each row is divided by a power of two, so
// that its largest element is near 2^15: elements down to 2^-39 of that are not 0 then, and none is
// infinite that was not. Rows are not rounded otherwise but to float16's 11 bits.
//
// In each 16 dims pairs 0, 2, 4, 6 come first, then pairs 1, 3, 5, 7: the order in which
// decode_float8.cuh has the dims of keys.
#pragma once

#include "core/pod/float8.hpp"
#include "kernels/cuda/attend/hopper/decode/decode_shared.cuh"

namespace kvmesh::cuda {

/// 2^14 against the power of two in `largest`, and its inverse.
struct QueryScale {
  float up, down;

  __device__ explicit QueryScale(float largest) {
    // A number's exponent in its bits, so large that both factors are normal numbers.
    const std::uint32_t exponent = max(__float_as_uint(largest) >> 23, 15u);
    up = __uint_as_float((268 - exponent) << 23);
    down = __uint_as_float((exponent - 14) << 23);
  }
};

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

/// A warp copies the rows of a task; four lanes share one. Rows past the task's are 0: their scores
/// are computed and never stored.
class ScaledQueries {
 public:
  __device__ ScaledQueries(const AttendParams& params, const DecodeShared& shared, int slot)
      : p_(params), queries_(shared.queries(slot)), factors_(shared.query_factors(slot)) {}

  __device__ void load(const DeviceTask& task) const {
#pragma unroll 1
    for (int r = lane() / 4; r < kRows; r += 8) load_row(task, r);
  }

 private:
  static constexpr int kParts = kDimK / 64;  // of 16 elements a lane: parts lane % 4, + 4, ...

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int part(int i) { return i * 4 + lane() % 4; }

  __device__ void load_row(const DeviceTask& task, int r) const {
    float row[kParts][16] = {};
    if (r < task.rows) {
      const std::int64_t at = token_of(p_, task, r) * p_.q_token_stride +
                              (task.kv_head * kGroup + r % kGroup) * p_.q_head_stride;
#pragma unroll
      for (int i = 0; i < kParts; ++i) load_query_part(p_.q, at + part(i) * 16, row[i]);
    }
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (float element : row[i]) {
        const float size = fabsf(element);
        if (is_finite_size(size)) largest = fmaxf(largest, size);
      }
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    }
    const QueryScale scale(largest);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) put(r, part(i) * 2 + half, row[i], 2 * half, scale.up);
    }
    if (lane() % 4 == 0) factors_[r] = scale.down;
  }

  /// The pairs that begin at elements `first`, first + 4, ...
  __device__ void put(int r, int unit, const float (&part)[16], int first, float up) const {
    const auto pair = [&](int i) {
      return pack_pair<Dtype::kFloat16>(part[first + 4 * i] * up, part[first + 4 * i + 1] * up);
    };
    st_shared_v4(queries_ + kImageQ.unit(r, unit), {pair(0), pair(1), pair(2), pair(3)});
  }

  const AttendParams& p_;
  const std::uint32_t queries_;
  float* const factors_;
};

}  // namespace kvmesh::cuda
