// attend_partial with tensor cores: float16 or bfloat16 pages, head dims up to 256.
//
// A thread block takes its tasks one after another. For each it keeps the queries in shared memory
// (or registers), streams keys and values through `stages` steps of shared memory by 16-byte
// asynchronous copies, and holds scores and outputs in registers: S = Q K^T and O += P V by
// mma m16n8k16. The ways in which a block is cut are tile.hpp's.
//
//   bytes per key and head: (k_dim + v_dim) * 2, each read once by a block of up to 16 .. 128 rows.
//   Decode keeps stages - 1 steps of all warps on the way: 2 blocks * 4 warps * 2 * 8 KB = 128 KB
//   an SM of an H200, whose memory needs about 35 B/ns * 1 us = 35 KB.
//
// Sources: online softmax (Milakov and Gimelshein, 2018); FlashAttention-2 (Dao, 2023).
#pragma once

#include "kernels/cuda/attend/common/key_stream.cuh"
#include "kernels/cuda/attend/common/pieces.cuh"
#include "kernels/cuda/attend/mma/accumulators.cuh"

namespace kvmesh::cuda {

// With few rows, their fragments (k_dim / 4 registers) fit beside the outputs (v_dim / 2).
// Otherwise each step reads them again.
constexpr bool kQueriesInRegisters =
    kRowTiles == 1 && kKeyPairs == 1 && kPaddedK / 4 + kPaddedV / 2 <= 128;

using Keys = KeyStream<kShared, kChunkKeys>;

/// A warp's part of a block. Its task is in shared memory, as registers are scarce.
class Warp {
 public:
  __device__ Warp(const AttendParams& params, char* shared)
      : p_(params),
        task_(*reinterpret_cast<DeviceTask*>(shared + kShared.task_offset())),
        stream_(params, task_, shared),
        queries_(shared) {}

  __device__ void run(const DeviceTask& task) {
    if (threadIdx.x == 0) task_ = task;
    __syncthreads();
    stream_.prepare();
    load_queries();
    // A value that is NaN or infinite, in a key that a row does not see, makes 0 * NaN there. That
    // is so rare that it is looked for only at the end; then everything is computed again, key by
    // key.
    for (bool careful = false;; careful = true) {
      attend(careful);
      if (careful || !any_of_step(acc_.spoilt())) break;
      stream_.prepare();
    }
    if constexpr (kKeyWarps == 1) {
      store_rows();
    } else {
      merge_warps();
    }
    __syncthreads();
  }

 private:
  __device__ void load_queries() {
    copy_queries<kTile.rows(), kTile.threads()>(p_, task_, 0, queries_);
    if constexpr (kQueriesInRegisters) {
      const std::uint32_t queries = query_address();
#pragma unroll
      for (int k = 0; k < kPaddedK / 16; ++k) ldmatrix_x4(q_[k], kRowsK.further(queries, 2 * k));
    }
  }

  __device__ static int first_row() { return kRowWarps == 1 ? 0 : warp() * 16 * kRowTiles; }

  /// The address that this lane passes to ldmatrix for a query tile at row 0, column 0.
  __device__ std::uint32_t query_address() const {
    return kRowsK.unit(shared_address(queries_), first_row() + lane() % 16, lane() / 16);
  }

  __device__ void attend(bool careful) {
    acc_.clear();
    const int steps = stream_.steps();
    if (steps == 0) return;
    stream_.start();
    for (int step = 0; step < steps; ++step) {
      stream_.advance(step);
      Scores s;
      multiply_keys(stream_.keys(step), s);
      const bool check =
          stream_.first_key(step) + kStepKeys > task_.keys || stream_.any_masked(step);
      if (!kFoldScale || check) modify(step, check, s);
      Weights weights;
      acc_.softmax(s, exponent_scale(p_), weights);
      if (careful) {
        acc_.add_values_carefully(stream_.values(step), weights, lane());
      } else {
        acc_.add_values(stream_.values(step), weights, lane());
      }
    }
    stream_.finish();
  }

  __device__ void multiply_keys(std::uint32_t keys, Scores& s) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < 2 * kKeyPairs; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = 0.0f;
      }
    }
    const int lane = cuda::lane();
    const int key = lane % 8 + lane / 16 * 8;
    const std::uint32_t from = kRowsK.unit(keys, key, lane / 8 % 2);
    const std::uint32_t queries = query_address();
#pragma unroll
    for (int k = 0; k < kPaddedK / 16; ++k) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) load_query_tile(a[m], queries, m, k);
#pragma unroll
      for (int pair = 0; pair < kKeyPairs; ++pair) {
        std::uint32_t b[4];
        ldmatrix_x4(b, kRowsK.further(from, 2 * k) + kRowsK.bytes(pair * 16));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(s[m][2 * pair], a[m], b[0], b[1]);
          mma(s[m][2 * pair + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ void load_query_tile(std::uint32_t (&a)[4], std::uint32_t queries, int row_tile,
                                  int k) const {
    if constexpr (kQueriesInRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = q_[k][i];
    } else {
      ldmatrix_x4(a, kRowsK.further(queries, 2 * k) + kRowsK.bytes(row_tile * 16));
    }
  }

  /// Scales and modifies the scores where the exponent does not, and hides keys that are not
  /// visible. Leaves scores in units of log 2 unless the scale is folded.
  __device__ void modify(int step, bool check, Scores& s) const {
    Row rows[kRowTiles][2];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = first_row() + m * 16 + h * 8 + lane() / 4;
        rows[m][h] = row_of(p_, task_, min(r, task_.rows - 1));
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * kKeyPairs; ++n) {
      const int at = n * 8 + lane() % 4 * 2;  // a pair of keys at a time, not all of them at once
      modify_key<0>(step, at, check, n, rows, s);
      modify_key<1>(step, at + 1, check, n, rows, s);
    }
  }

  /// Key `at` of a step: column `Column` of the two that this thread has of tile n.
  template <int Column>
  __device__ void modify_key(int step, int at, bool check, int n, const Row (&rows)[kRowTiles][2],
                             Scores& s) const {
    const Key key = key_of(stream_.slots(step)[at], stream_.first_key(step) + at);
    const bool is_live = key.number < task_.keys;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& score = s[m][n][2 * h + Column];
        const Row& row = rows[m][h];
        if constexpr (!kFoldScale) score = modified(p_, task_, row, key, score);
        if (check && !(is_live && sees(p_, task_, row, key))) score = kNoKeys;
      }
    }
  }

  __device__ void store_rows() {
    const int lane = cuda::lane();
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float sum = acc_.row_sum(m, h);
        const int r = first_row() + m * 16 + h * 8 + lane / 4;
        if (r >= task_.rows) continue;
        const RowEnd end = row_end(p_, task_, r, sum, log_sum_exp(p_, acc_.max[m][h], sum));
        const OutputRow to = output_row(p_, task_, r);
#pragma unroll
        for (int n = 0; n < kValueTiles; ++n) {
          if (kDimV % 16 != 0 && n * 8 >= kDimV) break;
          to.put_pair(n * 8 + lane % 4 * 2, acc_.o[m][n][2 * h] * end.factor,
                      acc_.o[m][n][2 * h + 1] * end.factor);
        }
        if (lane % 4 == 0) put_lse(p_, task_, r, end.lse);
      }
    }
  }

  // ---- Where the warps split the keys: each has a partial of the same rows ----

  static constexpr int kRows = kTile.rows();

  /// In place of the stages: outputs [warp][row][kMergePitch], maxima [warp][row], sums
  /// [warp][row].
  __device__ void merge_warps() {
    auto* outputs = reinterpret_cast<float*>(queries_ + kShared.q_bytes());
    float* maxima = outputs + kKeyWarps * kRows * kMergePitch;
    float* sums = maxima + kKeyWarps * kRows;
    const int warp = cuda::warp();
    const int lane = cuda::lane();
    __syncthreads();  // the stages are free
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float sum = acc_.row_sum(m, h);
        const int at = warp * kRows + m * 16 + h * 8 + lane / 4;
        if (lane % 4 == 0) {
          maxima[at] = acc_.max[m][h];
          sums[at] = sum;
        }
#pragma unroll
        for (int n = 0; n < kValueTiles; ++n) {
          *reinterpret_cast<float2*>(outputs + at * kMergePitch + n * 8 + lane % 4 * 2) =
              float2{acc_.o[m][n][2 * h], acc_.o[m][n][2 * h + 1]};
        }
      }
    }
    __syncthreads();
    for (int r = warp; r < task_.rows; r += kKeyWarps) merge_row(r, outputs, maxima, sums);
  }

  __device__ void merge_row(int r, const float* outputs, const float* maxima, const float* sums) {
    const float scale = exponent_scale(p_);
    float max = kNoKeys;
#pragma unroll
    for (int w = 0; w < kKeyWarps; ++w) max = fmaxf(max, maxima[w * kRows + r]);
    const float shift = exponent_shift(max, scale);
    float weights[kKeyWarps];
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kKeyWarps; ++w) {
      // A warp without a maximum has no sum, except a NaN that it saw.
      const float own = maxima[w * kRows + r];
      weights[w] = own == kNoKeys ? 1.0f : weight_of(own, scale, shift);
      sum += weights[w] * sums[w * kRows + r];
    }
    const RowEnd end = row_end(p_, task_, r, sum, log_sum_exp(p_, max, sum));
    const OutputRow to = output_row(p_, task_, r);
    for (int column = lane(); column < kDimV; column += 32) {
      float o = 0.0f;
#pragma unroll
      for (int w = 0; w < kKeyWarps; ++w) {
        o += weights[w] * outputs[(w * kRows + r) * kMergePitch + column];
      }
      to.put(column, o * end.factor);
    }
    if (lane() == 0) put_lse(p_, task_, r, end.lse);
  }

  const AttendParams& p_;
  DeviceTask& task_;
  Keys stream_;
  char* const queries_;

  std::uint32_t q_[kQueriesInRegisters ? kPaddedK / 16 : 1][4];
  Accumulators acc_;
};

}  // namespace kvmesh::cuda

/// Grid: any size; pieces are claimed, or taken in turn. Block: kTile.threads(). Dynamic shared
/// memory: kShared.bytes(). The merge that follows may be launched to overlap: it waits for the end
/// of this kernel.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kTile.threads(), kvmesh::kBlocksPerSm)
    kvmesh_attend(const __grid_constant__ kvmesh::cuda::AttendParams params) {
  extern __shared__ __align__(128) uint4 kvmesh_shared[];
  kvmesh::cuda::Warp warp(params, reinterpret_cast<char*>(kvmesh_shared));
  if constexpr (kvmesh::cuda::kTile.key_warps > 1) {
    kvmesh::cuda::BlockPieces pieces(params);
    for (int piece = blockIdx.x; piece < pieces.count(); piece = pieces.next()) {
      warp.run(params.tasks[piece]);
    }
  } else {  // claims would take registers that these tiles do not have
    for (int piece = blockIdx.x; piece < params.task_counts->tasks; piece += gridDim.x) {
      warp.run(params.tasks[piece]);
    }
  }
  if constexpr (kvmesh::kOverlaps) kvmesh::cuda::griddepcontrol_launch_dependents();
}
