// attend_partial for few rows on Hopper over float8 (e4m3) pages: decode.cuh's kernel with other
// products. Keys and values are converted to float16, which holds every float8 number, on the way
// from shared memory to the registers that wgmma takes its A from (float8_rows.cuh); queries and
// weights are float16.
//
// A scale of all keys, or of a head's, is part of the factors of the queries; one of the values
// multiplies the outputs. With a scale for each row of a page, the scales of a tile are copied with
// it. A key's scale multiplies its scores. A value's scale multiplies the weights, which must stay
// in float16's range for all scales: log2(scale) is added to their exponents, and they are relative
// to the maximum of that sum. So the largest weight of a column is 1, and float16 loses at most
// 2^-24 of it. The sum of the softmax and the LSE are relative to the maximum of the scores, as
// without scales.
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

  static constexpr bool kNeighbours = true;

  __device__ void begin(const DeviceTask& task) {
    value_scale_ = task_scale(scales_.v, task);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) weight_max_[j][0] = weight_max_[j][1] = kNoKeys;
  }

  __device__ void multiply_keys(const Tile& tile, float (&s)[kRows / 2]) {
    mbarrier_wait(shared_.keys_full(tile.stage), tile.parity);
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
    finish_scores(tile, s);
  }

  /// As DecodeHalf's, with separate maxima of the weights.
  __device__ void softmax(float (&s)[kRows / 2], const Tile& tile) {
    const float scale = exponent_scale(p_);
    float weights[kRows / 2];
    put_maxima(shared_.columns(), s);
    if constexpr (kRowScales) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) weights[i] = s[i] * scale + value_log_[i / 2 % 2];
      put_maxima(shared_.weight_columns(), weights);
    }
    sync();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float top[2], keep[2];
      column_maxima(shared_.columns(), j, max_[j], top);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        keep[c] = weigh(s[4 * j + c], s[4 * j + 2 + c], j, c, top[c], scale);
      if constexpr (kRowScales) weigh_values(weights, j, keep);
      rescale(j, keep);
    }
    if constexpr (kRowScales) {
      publish(tile, weights);
    } else {
      publish(tile, s);
    }
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

  /// The maximum of the weights, relative to that of the scores, to which the sum refers.
  __device__ float output_factor(int j, int c) const {
    if constexpr (!kRowScales) return value_scale_;
    if (max_[j][c] == kNoKeys) return 1.0f;  // -inf - -inf must not be computed
    return ex2_approx(weight_max_[j][c] - max_[j][c] * exponent_scale(p_));
  }

 private:
  /// Dims whose converted elements are in registers at a time: 32 registers for 128, which 32 rows
  /// do not leave.
  static constexpr int kPartDims = kDimK % 128 == 0 && kRows < 32 ? 128 : 64;
  static constexpr int kPartTiles = kDimV % 128 == 0 && kRows < 32 ? 2 : 1;

  /// A of products `k` and `k + 1`, of 16 dims each.
  __device__ void load_keys(const Tile& tile, int k, std::uint32_t (&a)[4],
                            std::uint32_t (&next)[4]) const {
    // Matrices: rows 0 .. 7 and 8 .. 15 of this warp, 16 dims; the same, the next 16.
    const int row = warp() * 16 + lane() % 16;
    std::uint32_t bytes[4];
    ldmatrix_x4(bytes, shared_.keys(tile.stage) + kImageK.unit(row, k + lane() / 16));
    widen_keys(bytes[0], bytes[1], a);
    widen_keys(bytes[2], bytes[3], next);
  }

  /// A of 64 dims `m` and 16 keys `k`, and of the next 16.
  __device__ void load_values(const Tile& tile, int m, int k, std::uint32_t (&a)[4],
                              std::uint32_t (&next)[4]) const {
    // Matrices: 8 keys each, of the 16 dims that this warp has.
    const int row = k * 16 + lane();
    std::uint32_t bytes[4];
    ldmatrix_x4_trans(bytes, shared_.values(tile.stage) + kImageV.unit(row, m * 4 + warp()));
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
        const bool is_live = key_in_tile(h) < tile.live();
        value_log_[h] = is_live ? lg2_approx(scales[kTileKeys]) : 0.0f;
      }
    }
    const float* const factors = shared_.query_factors(tile.slot);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float2 factor = *reinterpret_cast<const float2*>(factors + column(j, 0));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        s[4 * j + 2 * h] = s[4 * j + 2 * h] * factor.x * key_scale[h];
        s[4 * j + 2 * h + 1] = s[4 * j + 2 * h + 1] * factor.y * key_scale[h];
      }
    }
  }

  /// Computes the weights of two columns from their exponents. A scale that is not a positive
  /// number makes them NaN, also where the key is not visible: `spoilt` finds that.
  __device__ void weigh_values(float (&weights)[kRows / 2], int j, float (&keep)[2]) {
    float top[2];
    column_maxima(shared_.weight_columns(), j, weight_max_[j], top);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float shift = raise(weight_max_[j][c], top[c], 1.0f, keep[c]);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& weight = weights[4 * j + 2 * h + c];
        weight = ex2_approx(weight - shift);
      }
    }
  }

  float value_scale_;            // of the piece's head, if rows have none
  float value_log_[2];           // of this thread's keys of a tile
  float weight_max_[kTiles][2];  // in units of log 2
};

}  // namespace kvmesh::cuda

/// As kvmesh_attend_decode.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kDecodeThreads, kvmesh::kBlocksPerSm)
    kvmesh_attend_decode_float8(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  extern __shared__ __align__(1024) char kvmesh_shared[];
  kvmesh::cuda::run_decode<kvmesh::cuda::DecodeFloat8>(params, kvmesh_shared);
}
