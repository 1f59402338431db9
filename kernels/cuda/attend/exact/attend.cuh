// attend_partial of reproducible caches, with tensor cores: float16 or bfloat16 pages. A row's bits
// depend on the keys that it sees alone.
//
// A chunk is kChunkKeys keys of a page: gcd(page size, 16). Its scores are products in the order of
// the dims; its outputs are one product over its keys, so no other key is in any of its float sums.
// The chunk's outputs times a power of two are added as integers (exact_sums.cuh): to the chunks of
// the warp, then to those of the block's other warps. The row lies in memory as an ExactRow then,
// and merge.cuh adds the splits. Integers have the same sum in any order and grouping.
//
//   S^T [16 keys, 8 rows] = K Q^T ─► weights P^T ─► O^T [v_dim, 8 rows] = V^T P^T ─► integers
//
// Rows are the columns of the products, since a warp of 8 rows then has no empty ones: 4 registers
// of sums for each of 8 * 128 outputs are 128 per thread.
//
//   bytes per key and head: (k_dim + v_dim) * 2, each read once by a block of 8 .. 64 rows
//   instructions per output and chunk: about 17, beside 1 / 8 of a product
#pragma once

#include "kernels/cuda/attend/common/key_stream.cuh"
#include "kernels/cuda/attend/common/pieces.cuh"
#include "kernels/cuda/attend/exact/exact_sums.cuh"
#include "kernels/cuda/attend/exact/store_rows.cuh"

namespace kvmesh::cuda {

// The queries' fragments take k_dim / 8 registers, which fit beside the sums up to here.
constexpr bool kQueriesInRegisters = kPaddedK <= 128;

using Keys = KeyStream<kShared, kChunkKeys>;

/// A warp's part of a block. Its task is in shared memory, as registers are scarce.
class ExactWarp {
 public:
  __device__ ExactWarp(const AttendParams& params, char* shared)
      : p_(params),
        task_(*reinterpret_cast<DeviceTask*>(shared + kShared.task_offset())),
        stream_(params, task_, shared),
        queries_(shared),
        shared_(shared) {}

  __device__ void run(const DeviceTask& task) {
    if (threadIdx.x == 0) task_ = task;
    __syncthreads();
    for (first_row_ = 0; first_row_ < task_.rows; first_row_ += kTile.rows()) run_rows();
  }

 private:
  __device__ static int row_warp() {
    return kKeyWarps > 1 ? 0 : warp() / kColumnWarps * kExactWarpRows;
  }

  /// As many rows as the block has room for, over all keys of the task.
  __device__ void run_rows() {
    load_queries();
    const int steps = stream_.steps();
    int first = 0;
    do {
      const int end = min(steps, first + kMostSteps);
      sums_.clear();
      max_[0] = max_[1] = kNoKeys;
      if (first < end) attend(first, end);
      StoreRows(p_, task_, shared_, first_row_, first == 0).run(sums_, max_);
      first = end;
    } while (first < steps);
  }

  __device__ void load_queries() {
    copy_queries<kTile.rows(), kTile.threads()>(p_, task_, first_row_, queries_);
    if constexpr (kQueriesInRegisters) {
#pragma unroll
      for (int k = 0; k < kPaddedK / 16; ++k) {
        ldmatrix_x2(q_[k], kRowsK.further(query_address(), 2 * k));
      }
    }
  }

  /// The address that this lane passes to ldmatrix for 8 queries at column 0.
  __device__ std::uint32_t query_address() const {
    return kRowsK.unit(shared_address(queries_), row_warp() + lane() % 8, lane() / 8 % 2);
  }

  __device__ void attend(int first, int end) {
    stream_.prepare(first);
    stream_.start(first);
    for (int step = first; step < end; ++step) {
      stream_.advance(step);
      const bool check = stream_.first_key(step) + kTile.tile_keys() / kKeyWarps > task_.keys ||
                         stream_.any_masked(step);
#pragma unroll 1
      for (int chunk = 0; chunk < kStepKeys / 16; ++chunk) add_chunk(step, chunk * 16, check);
    }
    stream_.finish();
  }

  /// The chunk at row `begin` of the step's rows.
  __device__ void add_chunk(int step, int begin, bool check) {
    Products s = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply_keys(stream_.keys(step) + kRowsK.bytes(begin), s);
    modify(step, begin, check, s);
    const ChunkWeights weights = weigh(s, max_);
    const std::uint32_t values = stream_.values(step) + kRowsV.bytes(begin);
    ChunkOutputs x;
    multiply_values(values, weights, x);
    if (!__all_sync(kAllLanes, sums_.has_room(x, weights))) {
      multiply_values_carefully(values, weights, x);
      sums_.make_room(x, weights);
    }
    sums_.add(x, weights);
  }

  __device__ void multiply_keys(std::uint32_t keys, Products& s) const {
    const std::uint32_t from = kRowsK.unit(keys, lane() % 16, lane() / 16);
#pragma unroll
    for (int k = 0; k < kPaddedK / 16; ++k) {
      std::uint32_t a[4];
      ldmatrix_x4(a, kRowsK.further(from, 2 * k));
      if constexpr (kQueriesInRegisters) {
        mma(s, a, q_[k][0], q_[k][1]);
      } else {
        std::uint32_t b[2];
        ldmatrix_x2(b, kRowsK.further(query_address(), 2 * k));
        mma(s, a, b[0], b[1]);
      }
    }
  }

  /// Scales and modifies the scores, and hides keys that are not visible, and rows without a key.
  __device__ void modify(int step, int begin, bool check, Products& s) const {
    if (!kHasScoreMod && !check && kChunkKeys == 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[i] *= p_.scale;
      return;
    }
    const int at = begin + lane() / 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = first_row_ + row_warp() + lane() % 4 * 2 + j;
      const Row row = row_of(p_, task_, min(r, task_.rows - 1));
      modify_score(step, at, check, row, s[j]);
      modify_score(step, at + 8, check, row, s[2 + j]);
    }
  }

  /// The score of a row and the key at row `at` of the step.
  __device__ void modify_score(int step, int at, bool check, const Row& row, float& score) const {
    const Key key = key_of(stream_.slots(step)[at], stream_.first_key(step) + Keys::key_of_row(at));
    const bool is_live = Keys::has_key(at) && key.number < task_.keys;
    score = modified(p_, task_, row, key, score);
    if (!is_live || (check && !sees(p_, task_, row, key))) score = kNoKeys;
  }

  __device__ static std::uint32_t value_address(std::uint32_t values) {
    return kRowsV.unit(values, lane() % 8 + lane() / 16 * 8, lane() / 8 % 2);
  }
  __device__ static int first_column_tile() {
    return kKeyWarps > 1 ? 0 : warp() % kColumnWarps * kColumnTiles;
  }
  __device__ static bool has_column_tile(int n) {
    return kAllColumnTiles % kColumnWarps == 0 || first_column_tile() + n < kAllColumnTiles;
  }
  /// The values of 16 columns, a tile of this warp's, as mma takes them.
  __device__ static void load_values(std::uint32_t values, int n, std::uint32_t (&a)[4]) {
    if constexpr (kColumnWarps == 1) {
      ldmatrix_x4_trans(a, kRowsV.further(value_address(values), 2 * n));
    } else {
      const int unit = 2 * (first_column_tile() + n) + lane() / 8 % 2;
      ldmatrix_x4_trans(a, kRowsV.unit(values, lane() % 8 + lane() / 16 * 8, unit));
    }
  }

  __device__ static void multiply_values(std::uint32_t values, const ChunkWeights& weights,
                                         ChunkOutputs& x) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n][i] = 0.0f;
      if (!has_column_tile(n)) continue;
      std::uint32_t a[4];
      load_values(values, n, a);
      mma(x[n], a, weights.b[0], weights.b[1]);
    }
  }

  /// The same where a value that is infinite or NaN, of a key that a row does not see, may have
  /// made 0 * NaN there: row by row, with 0 for the values of keys without weight. Every other row
  /// has the bits from before.
  __device__ static void multiply_values_carefully(std::uint32_t values,
                                                   const ChunkWeights& weights, ChunkOutputs& x) {
#pragma unroll 1
    for (int row = 0; row < kExactWarpRows; ++row) {
      const int from = row * 4 + lane() % 4;
      const std::uint32_t low = with_weight(__shfl_sync(kAllLanes, weights.b[0], from));
      const std::uint32_t high = with_weight(__shfl_sync(kAllLanes, weights.b[1], from));
      const bool is_mine = lane() % 4 == row / 2;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        if (!has_column_tile(n)) continue;
        std::uint32_t a[4];
        load_values(values, n, a);
        const std::uint32_t seen[4] = {a[0] & low, a[1] & low, a[2] & high, a[3] & high};
        Products row_x = {0.0f, 0.0f, 0.0f, 0.0f};
        mma(row_x, seen, weights.b[0], weights.b[1]);
        if (!is_mine) continue;
        x[n][0] = row % 2 == 0 ? row_x[0] : x[n][0];
        x[n][1] = row % 2 == 0 ? x[n][1] : row_x[1];
        x[n][2] = row % 2 == 0 ? row_x[2] : x[n][2];
        x[n][3] = row % 2 == 0 ? x[n][3] : row_x[3];
      }
    }
  }
  /// All bits of each half of a pair that is not 0; weights have no sign.
  __device__ static std::uint32_t with_weight(std::uint32_t pair) {
    return ((pair & 0xFFFFu) != 0 ? 0xFFFFu : 0u) | (pair >> 16 != 0 ? 0xFFFF'0000u : 0u);
  }

  const AttendParams& p_;
  DeviceTask& task_;
  Keys stream_;
  char* const queries_;
  char* const shared_;
  int first_row_ = 0;

  std::uint32_t q_[kQueriesInRegisters ? kPaddedK / 16 : 1][2];
  ExactSums sums_;
  float max_[2];
};

}  // namespace kvmesh::cuda

/// Grid: any size; pieces are claimed. Block: kTile.threads(). Dynamic shared memory:
/// kShared.bytes(). The merge that follows may be launched to overlap: it waits for the end of this
/// kernel.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kTile.threads(), kvmesh::kBlocksPerSm)
    kvmesh_attend_exact(const __grid_constant__ kvmesh::cuda::AttendParams params) {
  extern __shared__ __align__(128) uint4 kvmesh_shared[];
  kvmesh::cuda::ExactWarp warp(params, reinterpret_cast<char*>(kvmesh_shared));
  kvmesh::cuda::BlockPieces pieces(params);
  for (int piece = blockIdx.x; piece < pieces.count(); piece = pieces.next()) {
    warp.run(params.tasks[piece]);
  }
  if constexpr (kvmesh::kOverlaps) kvmesh::cuda::griddepcontrol_launch_dependents();
}
