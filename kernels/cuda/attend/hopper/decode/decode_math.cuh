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
///   begin(task, slot)                   a piece
///   multiply_keys(tile, s)              scores of a tile, which has arrived
///   softmax(s, tile)                    to weights, in shared memory; ends with a barrier
///   add_values(tile)                    to o_
///   output_factor(j, c)                 what o_ of a column is to be multiplied by
///   kDescribesTiles                     keys and values are operands of products in shared memory
///   kNeighbours                         rows g and g + 8 of o_ are dims 2 * g and 2 * g + 1
template <class Kernel>
class DecodeMath {
 public:
  __device__ void run() {
    wait_for_inputs(p_);
    for (RingTurn<kPieceRing> piece;; piece.advance()) {
      const int slot = uniform(piece.place);
      mbarrier_wait(shared_.piece_full(slot), piece.parity);
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
    int live;  // keys of the piece from the first one on: fewer than a tile if the piece ends in it
  };

  __device__ DecodeMath(const HopperParams& params, const DecodeShared& shared)
      : p_(params.attend), scales_(params.scales), shared_(shared) {}

  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int column(int j, int c) { return 8 * j + lane() % 4 * 2 + c; }
  /// The key, within a tile, of this thread's scores 4 * j + 2 * h + c.
  __device__ int key_in_tile(int h) const { return key_ + h * 8; }
  __device__ static void sync() { asm volatile("barrier.cta.sync 1, 128;" ::: "memory"); }

  // ---- Scores ----

  /// Turns scores into weights exp(score - reference), and rescales the sums of the rows. The
  /// references are the largest `tops` so far, which belong to the scores: these themselves, or
  /// near them. All four warps have the same. At this barrier all have written the maxima of their
  /// columns and have read the weights of the previous tile; at that of `publish` all have written
  /// their weights and read the maxima.
  __device__ void weigh(float (&s)[kRows / 2], const float (&tops)[kRows / 2]) {
    put_maxima(tops);
    sync();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float top[2];
      column_maxima(j, top);
      // Maxima soon stop rising.
      if (!__all_sync(kAllLanes, top[0] == max_[j][0] && top[1] == max_[j][1])) raise(j, top);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& first = s[4 * j + c];
        float& second = s[4 * j + 2 + c];
        first = weight_of(first, scale_, shift_[j][c]);
        second = weight_of(second, scale_, shift_[j][c]);
        sum_[j][c] += first + second;
      }
    }
  }

  /// Makes the weights of all warps, and the values, whose unwritten slots are cleared, visible to
  /// the tensor cores.
  __device__ void publish(const Tile& tile, const float (&weights)[kRows / 2]) const {
    put_weights(weights);
    if (tile.live < kTileKeys) clear_values(tile);
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
        shift_[j][c] = exponent_shift(kNoKeys, scale_);
        sum_[j][c] = 0.0f;
      }
    }
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) o_[m][i] = 0.0f;
    }
    kernel().begin(task, slot);
    const int keys = task.keys;
#pragma unroll 1
    for (int first = 0; first < keys; first += kTileKeys, stage_.advance()) {
      const int stage = Kernel::kDescribesTiles ? uniform(stage_.place) : stage_.place;
      const Tile tile{task, slot, stage, stage_.parity, first, keys - first};
      float s[kRows / 2];
      mbarrier_wait(shared_.keys_full(tile.stage), tile.parity);
      const bool check = shared_.masked(tile.stage) != 0 || tile.live < kTileKeys;
      kernel().multiply_keys(tile, s);
      finish_scores(tile, check, s);
      kernel().softmax(s, tile);
      kernel().add_values(tile);
    }
  }

  /// Scales and modifies the scores where that is not left to the exponent, and hides what is not
  /// visible. Then the keys are released.
  __device__ void finish_scores(const Tile& tile, bool check, float (&s)[kRows / 2]) const {
    if (!kFoldScale || check) modify(tile, check, s);
    if constexpr (kLatent) return;  // they are needed as values
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(shared_.keys_empty(tile.stage));
  }

  __device__ void modify(const Tile& tile, bool check, float (&s)[kRows / 2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int in_tile = key_in_tile(h);
      const Key key =
          key_of(shared_.visits(tile.stage)[in_tile / kBoxRows], tile.first_key + in_tile);
      const bool is_live = in_tile < tile.live;
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

  /// Writes the maxima of this warp's columns, which `column_maxima` reads.
  __device__ void put_maxima(const float (&s)[kRows / 2]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float top[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) top[c] = column_max(fmaxf(s[4 * j + c], s[4 * j + 2 + c]));
      if (lane() < 4) put_pair(own_columns() + 8 * j, top[0], top[1]);
    }
  }
  /// Returns the maxima of two columns until now.
  __device__ void column_maxima(int j, float (&top)[2]) const {
    top[0] = max_[j][0];
    top[1] = max_[j][1];
#pragma unroll
    for (int w = 0; w < kMathWarps; ++w) {
      const float2 of_warp =
          *reinterpret_cast<const float2*>(shared_.columns() + w * kRows + column(j, 0));
      top[0] = fmaxf(top[0], of_warp.x);
      top[1] = fmaxf(top[1], of_warp.y);
    }
  }

  __device__ void raise(int j, const float (&top)[2]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float& max = max_[j][c];
      float& shift = shift_[j][c];
      shift = exponent_shift(top[c], scale_);
      // Exactly 1 while the maximum stands: thousands of steps of a rounded 1 would add up.
      const float keep = max == top[c] ? 1.0f : weight_of(max, scale_, shift);
      max = top[c];
      sum_[j][c] *= keep;
#pragma unroll
      for (int m = 0; m < kDimTiles; ++m) {
        o_[m][4 * j + c] *= keep;
        o_[m][4 * j + 2 + c] *= keep;
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
  /// Where this thread's first columns are those of its warp.
  __device__ float* own_columns() const { return shared_.columns() + columns_at_; }
  __device__ static void put_pair(float* to, float first, float second) {
    *reinterpret_cast<float2*>(to) = float2{first, second};
  }

  /// As rows of 64 keys.
  __device__ void put_weights(const float (&s)[kRows / 2]) const {
    const std::uint32_t to = shared_.weights() + weights_at_;
#pragma unroll
    for (int j = 0; j + 1 < kTiles; j += 2) {
      stmatrix_x4_trans(to + kImageWeights.bytes(8 * j), pair_of(s, j, 0), pair_of(s, j, 1),
                        pair_of(s, j + 1, 0), pair_of(s, j + 1, 1));
    }
    if constexpr (kTiles % 2 == 1) {
      constexpr int j = kTiles - 1;
      stmatrix_x2_trans(to + kImageWeights.bytes(8 * j), pair_of(s, j, 0), pair_of(s, j, 1));
    }
  }
  __device__ static std::uint32_t pair_of(const float (&s)[kRows / 2], int j, int h) {
    return pack_pair<kProductType>(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]);
  }

  /// Clears slots past the end of a sequence, which may hold anything: 0 * NaN is NaN. Slots of
  /// latent pages are keys, too, which all warps have read by then.
  __device__ void clear_values(const Tile& tile) const {
    constexpr int kUnits = kImageV.stored_units();
    const int live = tile.live;
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
      if (lane() < 4) put_pair(own_columns() + 8 * j, sums[0], sums[1]);
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
  /// exceeds 100; or, relative to a reference with the scale of a value, they exceed float32.
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
            max_[j][c] != kNoKeys && (sum_[j][c] == 0.0f || (kRowScales && sum_[j][c] == -kNoKeys));
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
  const float scale_ = computed_here(exponent_scale(p_));
  float max_[kTiles][2];    // the references of the exponents
  float shift_[kTiles][2];  // `exponent_shift` of them
  float sum_[kTiles][2];    // over this thread's keys only, until the piece ends
  float o_[kDimTiles][kRows / 2];

 private:
  // Opaque, so that they stay in registers instead of being computed again for each tile.
  const int key_ = opaque(warp() * 16 + lane() / 4);  // of this thread, within a tile
  const int columns_at_ = opaque(warp() * kRows + column(0, 0));
  // Where row lane % 8 of 8x8 matrix lane / 8 of the weights is.
  const int weights_at_ =
      opaque(kImageWeights.unit(lane() / 16 * 8 + lane() % 8, warp() * 2 + lane() / 8 % 2));
  RingTurn<kStages> stage_;
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
