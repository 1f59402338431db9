// attend_partial over latent float8 (e4m3) pages on Hopper: up to 64 packed query rows, values that
// are the first elements of their keys (MLA).
//
// As over other float8 pages (decode_float8.cuh) keys are the rows of the products, and are
// converted to float16 on the way to registers; values, which are the same bytes, once more. A tile
// is 64 keys of each of one or two teams, which are warpgroups:
//
//   S^T [64 keys of a team, N rows]       = K Q^T
//   O^T [a team's share of the dims, N]  += V^T P^T    over the keys of both
//
//   up to 16 rows: one team, two thread blocks on an SM, each of which fills the other's softmax
//   more rows:     two teams, since outputs of 64 rows are half of an SM's registers
//
// Maxima of columns go through shared memory; one thread for each column makes the reference of its
// exponents of them. With a scale for each row of a page there are two: of the scores, to which the
// sum and the LSE refer, and of the weights, whose exponents have log2 of the value's scale added.
//
// Shared memory is what limits 64 rows: queries 72 KB, two tiles of 128 keys 144 KB. Weights of one
// team, and before them the maxima, take the place of those elements of the tile's keys that are no
// values.
//
//   bytes per key: k_dim, and 4 of its scale. A tile of 64 keys of dim 576 is 36 KB: 1,050 ns
//   (1,850 cycles) of an H200's memory. An SM converts 64 elements a cycle: 1,090 cycles for keys
//   and values. Products: 36 + 32 of 21 cycles for 16 rows, of 33 for 64: 1,430 and 2,240 cycles.
//
// Sources: keys as rows (TensorRT-LLM's XQA); conversion in registers (Tencent's hpc-ops); outputs
// divided between warpgroups (FlashMLA).
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"
#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_columns.cuh"
#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_producer.cuh"
#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_products.cuh"
#include "kernels/cuda/attend/hopper/scaled_queries.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"

namespace kvmesh::cuda {

/// The math warps. With g = lane / 4 this thread has, of its columns, the scores of keys 16 * warp
/// + g and that + 8, and the outputs of dims 2 * g and 2 * g + 1 of its warp's 16.
class LatentFloat8Math : ThreadColumns {
 public:
  __device__ LatentFloat8Math(const HopperParams& params, const LatentFloat8Shared& shared)
      : p_(params.attend), scales_(params.scales), shared_(shared), products_(shared) {}

  __device__ __forceinline__ void run() {
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.piece_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      ScaledQueries(p_, scales_.k, shared_.queries(), shared_.query_factors())
          .load(task, warp(), kMathWarps);
      fence_proxy_async();  // the queries, for the tensor cores
      Teams::sync();
      attend(task);
      finish(task);
      release(shared_.piece_empty(slot));
    }
  }

 private:
  static constexpr int kDimTiles = LatentFloat8Products::kDimTiles;
  static constexpr int kKinds = kTile.kinds();  // of references: of scores, of weights
  using Scores = LatentFloat8Products::Scores;

  /// A tile of a piece.
  struct Tile {
    const DeviceTask& task;
    int stage;
    int first_key;

    /// The number of its keys that are written, if the piece ends in it.
    __device__ int live() const { return task.keys - first_key; }
  };

  __device__ static int warp() { return threadIdx.x / 32; }
  /// The key, within a tile, of this thread's scores 4 * j + 2 * h + c.
  __device__ static int key_in_tile(int h) { return warp() * 16 + h * 8 + lane() / 4; }
  __device__ static void release(std::uint32_t barrier) {
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(barrier);
  }

  __device__ void attend(const DeviceTask& task) {
    top_ = kNoKeys;
#pragma unroll
    for (float& sum : sum_) sum = 0.0f;
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) o_[m][i] = 0.0f;
    }
#pragma unroll 1
    for (int first_key = 0; first_key < task.keys; first_key += kTileKeys, ++tile_) {
      const Tile tile{task, uniform(tile_ % kStages), first_key};
      mbarrier_wait(shared_.full(tile.stage), tile_ / kStages % 2);
      Scores s;
      products_.multiply_keys(tile.stage, s);
      float value_log[2] = {};
      scale_scores(tile, s, value_log);
      softmax(tile, s, value_log);
      products_.add_values(tile.stage, o_);
      release(shared_.empty(tile.stage));
    }
  }

  // ---- Scores ----

  /// Turns scores into products of the original queries and keys, modifies them where that is not
  /// left to the exponent, and hides what is not visible. A scale of the head's keys is in the
  /// factors of the queries. `value_log` is log2 of the values' scales.
  __device__ void scale_scores(const Tile& tile, Scores& s, float (&value_log)[2]) const {
    float key_scale[2] = {1.0f, 1.0f};
    if constexpr (kRowScales) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        key_scale[h] = shared_.scales(tile.stage)[key_in_tile(h)];
        // A slot that was never written has no weight, but its scale may be NaN.
        value_log[h] = key_in_tile(h) < tile.live() ? lg2_approx(key_scale[h]) : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float2 factor = pair_at(shared_.query_factors(), j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        s[4 * j + 2 * h] = s[4 * j + 2 * h] * factor.x * key_scale[h];
        s[4 * j + 2 * h + 1] = s[4 * j + 2 * h + 1] * factor.y * key_scale[h];
      }
    }
    const bool check = tile.live() < kTileKeys || shared_.masked(tile.stage) != 0;
    if (!kFoldScale || check) modify(tile, check, s);
  }

  __device__ void modify(const Tile& tile, bool check, Scores& s) const {
    const Key keys[2] = {key_of(tile, 0), key_of(tile, 1)};
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        // Hidden, else tokens and heads of all columns are in registers all the while.
        const int r = opaque(min(column(j, c), tile.task.rows - 1));
        const Row row = row_of(p_, tile.task, r);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& score = s[4 * j + 2 * h + c];
          if constexpr (!kFoldScale) score = modified(p_, tile.task, row, keys[h], score);
          const bool is_live = keys[h].number < tile.task.keys;
          if (check && !(is_live && sees(p_, tile.task, row, keys[h]))) score = kNoKeys;
        }
      }
    }
  }
  __device__ Key key_of(const Tile& tile, int h) const {
    const int in_tile = key_in_tile(h);
    return cuda::key_of(shared_.visits(tile.stage)[in_tile / kBoxRows], tile.first_key + in_tile);
  }

  // ---- Softmax ----

  /// Turns scores into weights, in shared memory, and rescales the sums of the rows. At the first
  /// barrier all maxima are written, and all warps are done with the weights of the tile before and
  /// with this tile's keys; at the second, all references; at the third, all weights.
  __device__ void softmax(const Tile& tile, Scores& s, const float (&value_log)[2]) {
    const float scale = exponent_scale(p_);
    float* const columns = shared_.columns(tile.stage, warp());
    put_maxima(columns, [&](int i) { return s[i]; });
    if constexpr (kRowScales) {
      put_maxima(columns + kRows, [&](int i) { return s[i] * scale + value_log[i / 2 % 2]; });
    }
    Teams::sync();
    raise_reference(tile.stage);
    Teams::sync();
    weigh(tile.stage, scale, value_log, s);
    if (tile.live() < kTileKeys) clear_values(tile);
    fence_proxy_async();
    Teams::sync();
  }

  /// One thread has a column of a kind.
  __device__ void raise_reference(int stage) {
    const int i = opaque(threadIdx.x);
    static_assert(kKinds * kRows <= kMathThreads);
    if (i >= kKinds * kRows) return;
    float top = top_;
#pragma unroll
    for (int w = 0; w < kMathWarps; ++w) top = fmaxf(top, shared_.columns(stage, w)[i]);
    const float scale = i < kRows ? exponent_scale(p_) : 1.0f;
    const float shift = exponent_shift(top, scale);
    // Exactly 1 while the maximum stands: thousands of steps of a rounded 1 would add up.
    shared_.keeps()[i] = top_ == top ? 1.0f : weight_of(top_, scale, shift);
    shared_.references()[i] = shift;
    top_ = top;
  }

  /// Turns scores into weights, in shared memory, and adds them to the sums. A few columns at a
  /// time, since registers do not hold all columns on their way.
  __device__ void weigh(int stage, float scale, const float (&value_log)[2], Scores& s) {
    const int thread = opaque(threadIdx.x);  // else addresses are in registers all the while
    const int warp = thread / 32, lane = thread % 32;
    // As rows of a team's 64 keys: lane i has the address of row i % 8 of 8x8 matrix i / 8.
    const std::uint32_t to = shared_.weights(stage, warp / kTeamWarps);
    const int unit = warp % kTeamWarps * 2 + lane / 8 % 2;
    float added[2 * kTiles], left[kLeft];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      rescale(j);
      weigh_columns(j, scale, value_log, s, added);
      if (j % 2 == 1) {
        stmatrix_x4_trans(to + kImageWeights.unit((j - 1 + lane / 16) * 8 + lane % 8, unit),
                          pair_of(s, j - 1, 0), pair_of(s, j - 1, 1), pair_of(s, j, 0),
                          pair_of(s, j, 1));
      } else if (j + 1 == kTiles) {
        stmatrix_x2_trans(to + kImageWeights.unit(j * 8 + lane % 8, unit), pair_of(s, j, 0),
                          pair_of(s, j, 1));
      }
    }
    over_lanes<16>(added, left, [](float a, float b) { return a + b; });
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      sum_[i] = sum_[i] * shared_.keeps()[left_column(i)] + left[i];
    }
  }

  /// Makes outputs relative to the weights' new references. These soon stop rising; then there is
  /// nothing to multiply.
  __device__ void rescale(int j) {
    const float2 keep = pair_at(shared_.keeps() + (kKinds - 1) * kRows, j);
    if (__all_sync(kAllLanes, keep.x == 1.0f && keep.y == 1.0f)) return;
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o_[m][4 * j + i] *= i % 2 == 0 ? keep.x : keep.y;
    }
  }

  /// With scales of rows, a scale that is not a positive number makes weights NaN, also where the
  /// key is not visible: that is found at the end.
  __device__ void weigh_columns(int j, float scale, const float (&value_log)[2], Scores& s,
                                float (&added)[2 * kTiles]) const {
    const float2 shift = pair_at(shared_.references(), j);
    const float2 value_shift = pair_at(shared_.references() + (kKinds - 1) * kRows, j);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float weights[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& score = s[4 * j + 2 * h + c];
        weights[h] = weight_of(score, scale, c == 0 ? shift.x : shift.y);
        const float value_weight =
            ex2_approx(score * scale + value_log[h] - (c == 0 ? value_shift.x : value_shift.y));
        score = kRowScales ? value_weight : weights[h];
      }
      added[2 * j + c] = computed_here(weights[0] + weights[1]);
    }
  }

  __device__ static std::uint32_t pair_of(const Scores& s, int j, int h) {
    return pack_pair<Dtype::kFloat16>(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]);
  }

  /// Clears slots past the end of a sequence, which may hold anything: 0 * NaN is NaN.
  __device__ void clear_values(const Tile& tile) const {
    constexpr int kUnits = kImageV.stored_units();
    const int live = tile.live();
#pragma unroll 1
    for (int i = opaque(threadIdx.x); i < (kTileKeys - live) * kUnits; i += kMathThreads) {
      st_shared_v4(shared_.values(tile.stage) + kImageV.stored_unit(live + i / kUnits, i % kUnits),
                   uint4{});
    }
  }

  // ---- The end of a piece ----

  /// One thread ends a row: its LSE, and the factor of its outputs.
  __device__ void finish(const DeviceTask& task) {
#pragma unroll
    for (int i = 0; i < kLeft; ++i) shared_.sums(warp())[left_column(i)] = sum_[i];
    const int thread = opaque(threadIdx.x);
    if (thread < kKinds * kRows) shared_.references()[thread] = top_;
    Teams::sync();
    const bool is_spoilt = thread < task.rows && !end_row(task, thread);
    Teams::sync();
    // A value that is NaN or infinite, in a key that a row does not see, makes 0 * NaN. That is so
    // rare that it is looked for here only; then the piece is computed again, key by key. The
    // barrier is also what the next piece's queries wait for.
    if (Teams::any(has_spoilt_product(task) || is_spoilt)) return attend_plainly(task);
    store(task);
  }

  /// The factors of a row's outputs lie where the references were, which are no longer needed.
  __device__ float* output_factors() const { return shared_.keeps(); }

  /// Returns false if the row needs the slow path: all weights rounded to 0, which takes scores so
  /// large that a unit in their last place exceeds 100; or all exponents, with the scales of values
  /// added, are too small for float32.
  __device__ bool end_row(const DeviceTask& task, int r) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kMathWarps; ++w) sum += shared_.sums(w)[r];
    const RowEnd end = row_end(p_, task, r, sum, log_sum_exp(p_, top_, sum));
    put_lse(p_, task, r, end.lse);
    float factor = task_scale(scales_.v, task);
    const float exponent = top_ * exponent_scale(p_);
    if (kRowScales && top_ != kNoKeys) {  // -inf - -inf must not be computed
      // Weights are relative to their own maximum, the sum to that of the scores.
      factor = ex2_approx(shared_.references()[kRows + r] - exponent);
    }
    output_factors()[r] = factor * end.factor;
    return top_ == kNoKeys || !(sum == 0.0f || (kRowScales && exponent == kNoKeys));
  }

  /// Returns whether a product is NaN although all weights of its row are numbers.
  __device__ bool has_spoilt_product(const DeviceTask& task) const {
    bool found = false;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float2 factor = pair_at(output_factors(), j);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float probe = 0.0f;
#pragma unroll
        for (int m = 0; m < kDimTiles; ++m) {
          probe += o_[m][4 * j + c] * 0.0f + o_[m][4 * j + 2 + c] * 0.0f;
        }
        const float of_row = c == 0 ? factor.x : factor.y;
        found |= probe != probe && of_row == of_row && column(j, c) < task.rows;
      }
    }
    return found;
  }

  __device__ void attend_plainly(const DeviceTask& task) const {
    const int warp = opaque(threadIdx.x / 32);  // else its memory's place is in registers
#pragma unroll 1
    for (int r = warp; r < task.rows; r += kMathWarps) {
      RarePlainRow(p_, task, r, shared_.plain_query(warp), &scales_).run();
    }
    Teams::sync();  // the next piece's queries come into the same place
  }

  __device__ void store(const DeviceTask& task) const {
    const int thread = opaque(threadIdx.x);
    const int dim = thread % 32 / 4 * 2;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float2 factor = pair_at(output_factors(), j);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int r = opaque(column(j, c));
        if (r >= task.rows) continue;
        const float of_row = c == 0 ? factor.x : factor.y;
        const OutputRow to = output_row(p_, task, r);
        to.put_pairs<kDimTiles, 64>(
            LatentFloat8Products::first_dim(thread / 32, 0) + dim, [&](int m) {
              return float2{o_[m][4 * j + c] * of_row, o_[m][4 * j + 2 + c] * of_row};
            });
      }
    }
  }

  const AttendParams& p_;
  const DeviceScales& scales_;
  const LatentFloat8Shared& shared_;
  const LatentFloat8Products products_;
  int tile_ = 0;      // of all that this thread block computed
  float top_;         // the maximum of the column of which this thread makes the reference
  float sum_[kLeft];  // of columns left_column(i), over this warp's keys
  LatentFloat8Products::Outputs o_;
};

}  // namespace kvmesh::cuda

/// Grid: any size up to that of the tasks' array, since pieces are claimed. Block: kTile.threads().
/// Dynamic shared memory: kTile.bytes(). May be launched to overlap its predecessor, unless that is
/// a kernel of the plan: this kernel reads the plan before it waits for its predecessor.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kTile.threads(), kvmesh::kBlocksPerSm)
    kvmesh_attend_latent_float8(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  using namespace kvmesh::cuda;
  extern __shared__ __align__(1024) char kvmesh_shared[];
  const LatentFloat8Shared shared(kvmesh_shared);
  if (threadIdx.x == 0) {
    shared.init_barriers();
    prefetch_tensormap(params.k_map);
    prefetch_tensormap(params.v_map);
  }
  __syncthreads();
  if (threadIdx.x >= kMathThreads) {
    if constexpr (kTile.moves_registers()) setmaxnreg_dec<56>();
    if (threadIdx.x >= kMathThreads + 32) return;
    LatentFloat8Producer(params, shared).run();
    end_launch(params.attend);
  } else {
    if constexpr (kTile.moves_registers()) setmaxnreg_inc<224>();
    LatentFloat8Math(params, shared).run();
  }
}
