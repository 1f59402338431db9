// The common part of the math warps of the decode kernels: everything but the products.
//
// Four warps: warp w has keys 16 * w .. 16 * w + 15 of the scores, and dims 16 * w .. of each 64 of
// the outputs. This thread has columns 8 * j + 2 * t + c, which are query rows, of both, where t is
// lane % 4.
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"
#include "kernels/cuda/attend/hopper/decode/decode_producer.cuh"
#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"

namespace kvmesh::cuda {

/// `Kernel` derives from it, and has:
///   begin(task)                         a piece
///   multiply_keys(tile, s)              scores of a tile, visible ones; the rest is kNoKeys
///   softmax(s, tile)                    to weights, in shared memory; ends with a barrier
///   add_values(tile)                    to o_
///   output_factor(j, c)                 what o_ of a column is to be multiplied by
///   kNeighbours                         rows g and g + 8 of o_ are dims 2 * g and 2 * g + 1
template <class Kernel>
class DecodeMath {
 public:
  __device__ void run() {
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      const int slot = uniform(n % kPieceRing);
      mbarrier_wait(shared_.piece_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      fence_proxy_async();  // the queries, for the tensor cores
      attend(task, slot);
      finish(task, slot);
      __syncwarp();
      if (lane() == 0) mbarrier_arrive(shared_.piece_empty(slot));
    }
  }

 protected:
  static constexpr int kTiles = kRows / 8;  // of columns
  // Blocks of 64 dims of the outputs. They overlap as atoms of values do. The last may be half: the
  // other half of its rows is computed from unrelated memory and never stored.
  static constexpr int kDimTiles = (kDimV + 63) / 64;
  static constexpr int kTileStep = kImageV.atom_elements() == 64 ? kImageV.atom_step() : 64;
  __device__ static int first_dim(int m) { return m * kTileStep + warp() * 16; }
  __device__ static bool has_dims(int m) {
    if (kDimV % 64 == 0) return true;
    return first_dim(m) < kDimV && (m == 0 || warp() * 16 >= 64 - kTileStep);
  }

  /// A tile of a piece.
  struct Tile {
    const DeviceTask& task;
    int slot;  // of the piece
    int stage;
    std::uint32_t parity;
    int first_key;

    /// The number of its keys that are written, if the piece ends in it.
    __device__ int live() const { return task.keys - first_key; }
  };

  __device__ DecodeMath(const HopperParams& params, const DecodeShared& shared)
      : p_(params.attend), scales_(params.scales), shared_(shared) {}

  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int column(int j, int c) { return 8 * j + lane() % 4 * 2 + c; }
  /// The key, within a tile, of this thread's scores 4 * j + 2 * h + c.
  __device__ static int key_in_tile(int h) { return warp() * 16 + h * 8 + lane() / 4; }
  __device__ static void sync() { asm volatile("barrier.cta.sync 1, 128;" ::: "memory"); }

  // ---- Scores ----

  /// Scales and modifies the scores where that is not left to the exponent, and hides what is not
  /// visible. Then the keys are released.
  __device__ void finish_scores(const Tile& tile, float (&s)[kRows / 2]) const {
    const bool check = tile.live() < kTileKeys || shared_.masked(tile.stage) != 0;
    if (!kFoldScale || check) modify(tile, check, s);
    if constexpr (kLatent) return;  // they are needed as values
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(shared_.keys_empty(tile.stage));
  }

  /// Writes the maxima of this warp's columns, which `column_maxima` reads.
  __device__ static void put_maxima(float* columns, const float (&s)[kRows / 2]) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float top[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) top[c] = column_max(fmaxf(s[4 * j + c], s[4 * j + 2 + c]));
      if (lane() < 4) put_pair(columns + warp() * kRows + column(j, 0), top[0], top[1]);
    }
  }
  /// Returns the maxima of two columns, `before` included.
  __device__ static void column_maxima(const float* columns, int j, const float (&before)[2],
                                       float (&top)[2]) {
    top[0] = before[0];
    top[1] = before[1];
#pragma unroll
    for (int w = 0; w < kMathWarps; ++w) {
      const float2 of_warp = *reinterpret_cast<const float2*>(columns + w * kRows + column(j, 0));
      top[0] = fmaxf(top[0], of_warp.x);
      top[1] = fmaxf(top[1], of_warp.y);
    }
  }

  /// Sets the maximum of a column to `top`. Returns the reference of its exponents; `keep` is the
  /// factor for the column's former sums.
  __device__ static float raise(float& max, float top, float scale, float& keep) {
    const float shift = exponent_shift(top, scale);
    // Exactly 1 while the maximum stands: thousands of steps of a rounded 1 would add up.
    keep = max == top ? 1.0f : weight_of(max, scale, shift);
    max = top;
    return shift;
  }

  /// Turns two scores of a column into weights. Returns the factor for the column's former sum.
  __device__ float weigh(float& first, float& second, int j, int c, float top, float scale) {
    float keep;
    const float shift = raise(max_[j][c], top, scale, keep);
    first = weight_of(first, scale, shift);
    second = weight_of(second, scale, shift);
    sum_[j][c] = sum_[j][c] * keep + (first + second);
    return keep;
  }

  // Maxima soon stop rising; then there is nothing to multiply.
  __device__ void rescale(int j, const float (&keep)[2]) {
    if (__all_sync(kAllLanes, keep[0] == 1.0f && keep[1] == 1.0f)) return;
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o_[m][4 * j + i] *= keep[i % 2];
    }
  }

  /// Makes the weights of all warps, and the values, whose unwritten slots are cleared, visible to
  /// the tensor cores.
  __device__ void publish(const Tile& tile, const float (&weights)[kRows / 2]) const {
    put_weights(weights);
    if (tile.live() < kTileKeys) clear_values(tile);
    fence_proxy_async();
    sync();
  }

 private:
  __device__ Kernel& kernel() { return static_cast<Kernel&>(*this); }
  __device__ const Kernel& kernel() const { return static_cast<const Kernel&>(*this); }

  __device__ static bool any(bool value) {
    int found;
    asm volatile(
        "{\n.reg .pred in, out;\nsetp.ne.b32 in, %1, 0;\n"
        "barrier.cta.red.or.pred out, 1, 128, in;\nselp.b32 %0, 1, 0, out;\n}"
        : "=r"(found)
        : "r"(static_cast<int>(value))
        : "memory");
    return found != 0;
  }

  __device__ void attend(const DeviceTask& task, int slot) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        max_[j][c] = kNoKeys;
        sum_[j][c] = 0.0f;
      }
    }
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) o_[m][i] = 0.0f;
    }
    kernel().begin(task);
    const int tiles = DecodeStream::tiles_of(task);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i, ++tile_) {
      const Tile tile{task, slot, uniform(tile_ % kStages),
                      static_cast<std::uint32_t>(tile_ / kStages % 2), i * kTileKeys};
      float s[kRows / 2];
      kernel().multiply_keys(tile, s);
      kernel().softmax(s, tile);
      kernel().add_values(tile);
    }
  }

  __device__ void modify(const Tile& tile, bool check, float (&s)[kRows / 2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int in_tile = key_in_tile(h);
      const Key key =
          key_of(shared_.visits(tile.stage)[in_tile / kBoxRows], tile.first_key + in_tile);
      const bool is_live = key.number < tile.task.keys;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const Row row = row_of(p_, tile.task, min(column(j, c), tile.task.rows - 1));
          float& score = s[4 * j + 2 * h + c];
          if constexpr (!kFoldScale) score = modified(p_, tile.task, row, key, score);
          if (check && !(is_live && sees(p_, tile.task, row, key))) score = kNoKeys;
        }
      }
    }
  }

  /// Over the keys of this warp.
  __device__ static float column_max(float value) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
    }
    return value;
  }
  __device__ static float column_sum(float value) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
  }
  __device__ static void put_pair(float* to, float first, float second) {
    *reinterpret_cast<float2*>(to) = float2{first, second};
  }

  /// As rows of 64 keys: lane i has the address of row i % 8 of 8x8 matrix i / 8.
  __device__ void put_weights(const float (&s)[kRows / 2]) const {
    const std::uint32_t to = shared_.weights();
    const int unit = warp() * 2 + lane() / 8 % 2;
#pragma unroll
    for (int j = 0; j + 1 < kTiles; j += 2) {
      stmatrix_x4_trans(to + kImageWeights.unit((j + lane() / 16) * 8 + lane() % 8, unit),
                        pair_of(s, j, 0), pair_of(s, j, 1), pair_of(s, j + 1, 0),
                        pair_of(s, j + 1, 1));
    }
    if constexpr (kTiles % 2 == 1) {
      constexpr int j = kTiles - 1;
      stmatrix_x2_trans(to + kImageWeights.unit(j * 8 + lane() % 8, unit), pair_of(s, j, 0),
                        pair_of(s, j, 1));
    }
  }
  __device__ static std::uint32_t pair_of(const float (&s)[kRows / 2], int j, int h) {
    return pack_pair<kProductType>(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]);
  }

  /// Clears slots past the end of a sequence, which may hold anything: 0 * NaN is NaN. Slots of
  /// latent pages are keys, too, which all warps have read by then.
  __device__ void clear_values(const Tile& tile) const {
    constexpr int kUnits = kImageV.stored_units();
    const int live = tile.live();
    mbarrier_wait(shared_.values_full(tile.stage), tile.parity);
    for (int i = threadIdx.x; i < (kTileKeys - live) * kUnits; i += kMathThreads) {
      st_shared_v4(shared_.values(tile.stage) + kImageV.stored_unit(live + i / kUnits, i % kUnits),
                   uint4{});
    }
  }

  // ---- The end of a piece ----

  __device__ void finish(const DeviceTask& task, int slot) {
    float* const columns = shared_.columns();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float sums[2] = {column_sum(sum_[j][0]), column_sum(sum_[j][1])};
      if (lane() < 4) put_pair(columns + warp() * kRows + column(j, 0), sums[0], sums[1]);
    }
    sync();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      sum_[j][0] = sum_[j][1] = 0.0f;
#pragma unroll
      for (int w = 0; w < kMathWarps; ++w) {
        const float2 of_warp = *reinterpret_cast<const float2*>(columns + w * kRows + column(j, 0));
        sum_[j][0] += of_warp.x;
        sum_[j][1] += of_warp.y;
      }
    }
    // A value that is NaN or infinite, in a key that a row does not see, makes 0 * NaN. That is so
    // rare that it is looked for here only; then the piece is computed again, key by key.
    if (any(spoilt(task))) return attend_plainly(task, slot);
    store(task);
  }

  /// Returns whether a row needs the slow path: a product is NaN although all weights are numbers;
  /// or all weights rounded to 0, which takes scores so large that a unit in their last place
  /// exceeds 100; or all exponents, with the scales of values added, are too small for float32.
  __device__ bool spoilt(const DeviceTask& task) const {
    bool found = false;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float probe = 0.0f;
#pragma unroll
        for (int m = 0; m < kDimTiles; ++m) {
          if (has_dims(m)) probe += o_[m][4 * j + c] * 0.0f + o_[m][4 * j + 2 + c] * 0.0f;
        }
        const bool is_lost =
            max_[j][c] != kNoKeys &&
            (sum_[j][c] == 0.0f || (kRowScales && max_[j][c] * exponent_scale(p_) == kNoKeys));
        found |=
            (is_lost || (probe != probe && sum_[j][c] == sum_[j][c])) && column(j, c) < task.rows;
      }
    }
    return found;
  }

  __device__ void attend_plainly(const DeviceTask& task, int slot) const {
#pragma unroll 1
    for (int r = warp(); r < task.rows; r += kMathWarps) {
      RarePlainRow(p_, task, r, shared_.plain_query(slot, warp()), &scales_).run();
    }
  }

  __device__ void store(const DeviceTask& task) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int r = column(j, c);
        if (r >= task.rows) continue;
        const float sum = sum_[j][c];
        const RowEnd end = row_end(p_, task, r, sum, log_sum_exp(p_, max_[j][c], sum));
        const float factor = kernel().output_factor(j, c) * end.factor;
        const OutputRow to = output_row(p_, task, r);
#pragma unroll
        for (int m = 0; m < kDimTiles; ++m) {
          if (!has_dims(m)) continue;
          const float first = o_[m][4 * j + c] * factor, second = o_[m][4 * j + 2 + c] * factor;
          const int dim = first_dim(m);
          if constexpr (Kernel::kNeighbours) {
            to.put_pair(dim + lane() / 4 * 2, first, second);
          } else {
            to.put(dim + lane() / 4, first);
            to.put(dim + lane() / 4 + 8, second);
          }
        }
        if (threadIdx.x < 4) put_lse(p_, task, r, end.lse);
      }
    }
  }

 protected:
  const AttendParams& p_;
  const DeviceScales& scales_;
  const DecodeShared& shared_;
  float max_[kTiles][2];
  float sum_[kTiles][2];  // over this thread's keys only, until the piece ends
  float o_[kDimTiles][kRows / 2];

 private:
  int tile_ = 0;  // of all that this thread block computed
};

/// A thread block of a decode kernel.
template <class Kernel>
__device__ inline void run_decode(const HopperParams& params, char* begin) {
  const DecodeShared shared(begin);
  if (threadIdx.x == 0) {
    shared.init_barriers();
    if constexpr (!kGathers) {
      prefetch_tensormap(params.k_map);
      prefetch_tensormap(params.v_map);
    }
  }
  __syncthreads();
  if (kGathers && threadIdx.x >= kDecodeThreads) {
    DecodeProducer(params, shared, (threadIdx.x - kMathThreads) / 32).run_beside_first();
  } else if (threadIdx.x >= kMathThreads) {
    DecodeProducer(params, shared).run();
    end_launch(params.attend);
  } else {
    Kernel(params, shared).run();
  }
}

}  // namespace kvmesh::cuda
