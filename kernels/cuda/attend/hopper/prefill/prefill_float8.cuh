// The additional work of a consumer of the prefill kernel over float8 pages: queries become
// float16, and values may have scales.
//
// With a scale for each row of a page, a key's multiplies its scores (prefill_scores.cuh), and a
// value's its weights, after these are summed. A weight must stay in float16's range whatever the
// scale, so scales are relative to a power of two, the exponent of the largest of a tile
// (prefill_converter.cuh). It changes where a tile's differ from it by much, and outputs are then
// rescaled. A tile whose own scales differ by more than 2^16 has weights that float16 would lose:
// the piece is computed again, key by key.
#pragma once

#include "kernels/cuda/attend/common/query_scale.cuh"
#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_shared.cuh"

namespace kvmesh::cuda {

/// The 16 rows of queries that a warp has, as A of products of 16 dims: the first kRegisterSteps in
/// registers, which saves reading them for each tile, the others in shared memory.
class Float8Queries {
 public:
  /// The divisors of this thread's rows, g and g + 8.
  float down[2];

  /// Converts rows `first_row` and on, where they lie. Elements of float32 are float16 by now.
  __device__ void take(const PrefillShared& shared, int first_row) {
    // Hidden: else the places would be in registers from piece to piece.
    const int lane = opaque(threadIdx.x % 32);
    const std::uint32_t queries = shared.queries(0);
    const auto place = [&](int k) {
      return queries + kImageK.unit(first_row + lane % 16, 2 * k + lane / 16);
    };
    float up[2] = {1.0f, 1.0f};
    if constexpr (kQueryType == Dtype::kFloat32) {
      for (int h = 0; h < 2; ++h) down[h] = shared.query_factors()[first_row + 8 * h + lane / 4];
    } else {
      find_scales(place, up);
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      std::uint32_t a[4];
      ldmatrix_x4(a, place(k));
      if constexpr (kQueryType != Dtype::kFloat32) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[i] = pack_pair<Dtype::kFloat16>(low(a[i]) * up[i % 2], high(a[i]) * up[i % 2]);
        }
        if (k >= kRegisterSteps) stmatrix_x4(place(k), a[0], a[1], a[2], a[3]);
      }
      if (k >= kRegisterSteps) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) steps_[k][i] = a[i];
    }
  }

  __device__ const std::uint32_t (&step(int k) const)[4] { return steps_[k]; }

 private:
  static constexpr int kSteps = kDimK / 16;
  static constexpr Dtype kStored = kQueryType == Dtype::kFloat32 ? Dtype::kFloat16 : kQueryType;

  __device__ static float low(std::uint32_t pair) { return unpack_half<kStored, 0>(pair); }
  __device__ static float high(std::uint32_t pair) { return unpack_half<kStored, 1>(pair); }

  /// Four lanes have a row.
  template <class Place>
  __device__ void find_scales(const Place& place, float (&up)[2]) {
    LargestOfPairs<kStored> pairs[2];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      std::uint32_t a[4];
      ldmatrix_x4(a, place(k));
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i % 2].add(a[i]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = pairs[h].size();
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      const QueryScale scale(largest);
      up[h] = scale.up;
      down[h] = scale.down;
    }
  }

  std::uint32_t steps_[kRegisterSteps > 0 ? kRegisterSteps : 1][4];
};

/// 2^exponent, from 0 to infinity.
__device__ inline float power_of_two(int exponent) {
  return __int_as_float(max(0, min(255, exponent + 127)) << 23);
}

/// The exponent of values' scales to which a piece's outputs are relative.
class ValueReference {
 public:
  __device__ bool has_wide_tiles() const { return (exponent_ & kWideTile) != 0; }

  /// Multiplies weights of columns 8 * j + 2 * t + c by the factors of their values. Returns the
  /// exponent of these, for `begin` or `follow`.
  template <int N>
  __device__ __forceinline__ static int weigh(float (&weights)[N], const PrefillShared& shared,
                                              int tile) {
    const float* const factors = shared.value_factors(tile) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 4; ++j) {
      const float2 factor = *reinterpret_cast<const float2*>(factors + 8 * j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        weights[4 * j + 2 * h] *= factor.x;
        weights[4 * j + 2 * h + 1] *= factor.y;
      }
    }
    return shared.value_exponent(tile);
  }

  /// The first tile of a piece.
  __device__ void begin(int exponent) { exponent_ = exponent; }

  /// Returns whether outputs must be rescaled, by `keep`, which has factors already if `raised`.
  __device__ __forceinline__ bool follow(int exponent, bool raised, float (&keep)[2]) {
    const int before = exponent_ % kWideTile;
    exponent_ = exponent | (exponent_ & kWideTile);
    const int step = before - exponent % kWideTile;
    if (step == 0) return raised;
    const float factor = power_of_two(step);
#pragma unroll
    for (int h = 0; h < 2; ++h) keep[h] = raised ? keep[h] * factor : factor;
    return true;
  }

  /// The factor for outputs.
  __device__ float unit() const { return 0x1p-6f * power_of_two(exponent_ % kWideTile - 127); }

 private:
  int exponent_ = 0;
};

}  // namespace kvmesh::cuda
