// attend_partial for few rows on Hopper over float8 (e4m3) pages: decode.cuh's kernel with other
// products. Keys and values are converted to float16, which holds every float8 number, on the way
// from shared memory to the registers that wgmma takes its A from (float8_rows.cuh); queries and
// weights are float16.
//
// A scale of all keys, or of a head's, is part of the factors of the queries; one of the values
// multiplies the outputs. With a scale for each row of a page, the scales of a tile are copied with
// it. A key's scale multiplies its scores. A value's scale multiplies the weights, after they are
// summed. They must stay in float16's range for all scales: the reference of a column's exponents
// is not the largest of its scores, but of score + log(scale of the value). So the largest weight
// times its scale is 1, and float16 loses at most 2^-24 of it. A weight alone may be as large as
// the inverse of a scale, which float32 holds; the sum of the softmax and the LSE are of these.
//
//   bytes per key and kv head: k_dim + v_dim, and 8 of scales. A tile of 64 keys of dim 128 is
//   16.5 KB, which take 470 ns (850 cycles) of an H200's memory. An SM converts 64 elements a
//   cycle: 256 cycles; products as decode.cuh's: 300 of the tensor cores.
//
// Sources: keys as rows (TensorRT-LLM's XQA); conversion in registers (Tencent's hpc-ops).
#pragma once

#include "kernels/cuda/attend/hopper/decode/decode_math.cuh"
#include "kernels/cuda/attend/hopper/float8_rows.cuh"

namespace kvmesh::cuda {

class DecodeFloat8 : public DecodeMath<DecodeFloat8> {
 public:
  __device__ DecodeFloat8(const HopperParams& params, const DecodeShared& shared)
      : DecodeMath(params, shared) {}

  static constexpr bool kDescribesTiles = false;
  static constexpr bool kNeighbours = true;

  __device__ void begin(const DeviceTask& task, int slot) {
    value_scale_ = task_scale(scales_.v, task);
    per_exponent_ = 1.0f / exponent_scale(p_);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      factors_[j] = *reinterpret_cast<const float2*>(shared_.query_factors(slot) + column(j, 0));
    }
  }

  __device__ void multiply_keys(const Tile& tile, float (&s)[kRows / 2]) {
    const std::uint64_t rows = kImageQ.operand(shared_.queries(tile.slot));
#pragma unroll
    for (int part = 0; part < kDimK / kPartDims; ++part) {
      std::uint32_t keys[kPartDims / 16][4];
#pragma unroll
      for (int k = 0; k < kPartDims / 16; k += 2) {
        load_keys(tile, part * kPartDims / 16 + k, keys[k], keys[k + 1]);
      }
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kPartDims / 16; ++i) {
        const int k = part * kPartDims / 16 + i;
        wgmma_float16(s, keys[i], rows + kImageQ.further(k * 16), k > 0);
      }
      wgmma_commit_group();
      wgmma_wait_group<0>();
      wgmma_tie(s);
    }
    scale_scores(tile, s);
  }

  __device__ void softmax(float (&s)[kRows / 2], const Tile& tile) {
    if constexpr (kRowScales) {
      weigh_scaled(s);
    } else {
      weigh(s, s);
    }
    publish(tile, s);
  }

  __device__ void add_values(const Tile& tile) {
    mbarrier_wait(shared_.values_full(tile.stage), tile.parity);
    const std::uint64_t weights = kImageWeights.operand(shared_.weights());
    constexpr int kSteps = kTileKeys / 16;
#pragma unroll
    for (int first = 0; first < kDimTiles; first += kPartTiles) {
      std::uint32_t values[kPartTiles][kSteps][4];
#pragma unroll
      for (int i = 0; i < kPartTiles; ++i) {
#pragma unroll
        for (int k = 0; k < kSteps; k += 2) {
          load_values(tile, first + i, k, values[i][k], values[i][k + 1]);
        }
      }
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int i = 0; i < kPartTiles; ++i) {
          wgmma_float16(o_[first + i], values[i][k], weights + kImageWeights.further(k * 16), true);
        }
      }
      wgmma_commit_group();
      wgmma_wait_group<0>();
#pragma unroll
      for (int i = 0; i < kPartTiles; ++i) wgmma_tie(o_[first + i]);
    }
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(shared_.values_empty(tile.stage));
  }

  __device__ float output_factor(int /*j*/, int /*c*/) const {
    return kRowScales ? 1.0f : value_scale_;
  }

 private:
  /// Dims whose converted elements are in registers at a time: 32 registers for 128, which 32 rows
  /// do not leave.
  static constexpr int kPartDims = kDimK % 128 == 0 && kRows < 32 ? 128 : 64;
  static constexpr int kPartTiles = kDimV % 128 == 0 && kRows < 32 ? 2 : 1;

  /// A of products `k` and `k + 1`, of 16 dims each.
  __device__ void load_keys(const Tile& tile, int k, std::uint32_t (&a)[4],
                            std::uint32_t (&next)[4]) const {
    std::uint32_t bytes[4];
    ldmatrix_x4(bytes, shared_.keys(tile.stage) + kImageK.unit_after(keys_at_, k));
    widen_keys(bytes[0], bytes[1], a);
    widen_keys(bytes[2], bytes[3], next);
  }

  /// A of 64 dims `m` and 16 keys `k`, and of the next 16.
  __device__ void load_values(const Tile& tile, int m, int k, std::uint32_t (&a)[4],
                              std::uint32_t (&next)[4]) const {
    std::uint32_t bytes[4];
    ldmatrix_x4_trans(bytes, shared_.values(tile.stage) + kImageV.bytes(k * 16) +
                                 kImageV.unit_after(values_at_, m * 4));
    widen_values(bytes[0], bytes[1], a);
    widen_values(bytes[2], bytes[3], next);
  }

  /// Turns scores into products of the original queries and keys. A scale of the head's keys is in
  /// the factors of the queries. Reads the values' scales, too: their memory is released with the
  /// keys.
  __device__ void scale_scores(const Tile& tile, float (&s)[kRows / 2]) {
    float key_scale[2] = {1.0f, 1.0f};
    if constexpr (kRowScales) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* const scales = shared_.scales(tile.stage) + key_in_tile(h);
        key_scale[h] = scales[0];
        // A slot that was never written has no weight, but its scale may be NaN.
        value_scales_[h] = key_in_tile(h) < tile.live ? scales[kTileKeys] : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // In this order: the product of two large scales may be infinite where the score is not.
        s[4 * j + 2 * h] = s[4 * j + 2 * h] * factors_[j].x * key_scale[h];
        s[4 * j + 2 * h + 1] = s[4 * j + 2 * h + 1] * factors_[j].y * key_scale[h];
      }
    }
  }

  /// A scale that is not a number makes the weights of its key NaN, or infinite, also where the key
  /// is not visible: `spoilt` finds that.
  __device__ void weigh_scaled(float (&s)[kRows / 2]) {
    float value_log[2];  // in units of the scores
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      value_log[h] = fmaxf(lg2_approx(value_scales_[h]), kLeastLog) * per_exponent_;
    }
    float tops[kRows / 2];
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) tops[i] = s[i] + value_log[i / 2 % 2];
    weigh(s, tops);
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) s[i] *= value_scales_[i / 2 % 2];
  }

  /// Smaller scales, such as those of rows of zeros, leave the reference at this: it keeps sums of
  /// 2^27 weights finite. Values with scales below 2^-114 lose bits.
  static constexpr float kLeastLog = -100.0f;

  // Matrices: rows 0 .. 7 and 8 .. 15 of this warp, 16 dims; the same, the next 16.
  const int keys_at_ = opaque(kImageK.unit(warp() * 16 + lane() % 16, lane() / 16));
  // Matrices: 8 keys each, of the 16 dims that this warp has.
  const int values_at_ = opaque(kImageV.unit(lane(), warp()));
  float per_exponent_;      // what a score has of a unit of its exponent
  float value_scale_;       // of the piece's head, if rows have none
  float value_scales_[2];   // of this thread's keys of a tile
  float2 factors_[kTiles];  // of this thread's columns
};

}  // namespace kvmesh::cuda

/// As kvmesh_attend_decode.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kDecodeThreads, kvmesh::kBlocksPerSm)
    kvmesh_attend_decode_float8(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  extern __shared__ __align__(1024) char kvmesh_shared[];
  kvmesh::cuda::run_decode<kvmesh::cuda::DecodeFloat8>(params, kvmesh_shared);
}
