// attend_partial for few rows on Hopper: decode and speculation, float16 or bfloat16 pages, head
// dims of 64, 128, 192 and 256, up to 32 packed query rows.
//
// Keys are the rows of the products and queries their columns, so that 8 query rows need no padding
// to 64 and few registers:
//
//   S^T [64 keys, N rows]  = K Q^T        K and Q along their rows
//   O^T [v_dim, N rows]   += V^T P^T      V across its rows, P^T by way of shared memory
//
// A producer warp claims pieces, and brings queries, keys and values into rings of shared memory by
// the copy engine: one box per page and head. Four warps compute. Scores and outputs have their
// columns in the same threads, so rescaling the outputs needs no exchange; the maximum of a column
// is over keys, and goes through shared memory once per tile.
//
//   bytes per key and kv head: (k_dim + v_dim) * 2, each read once. An SM of an H200 gets 35 bytes
//   per ns at 1 us of latency, so 35 KB must be under way: 3 thread blocks * 64 KB keep more than
//   that. A tile of 64 keys of dim 128 is 32 KB, which take 930 ns of the memory; the products take
//   300 of the tensor cores' 1,700 cycles in that time.
//
// Sources: online softmax (Milakov and Gimelshein, 2018); keys as rows (TensorRT-LLM's XQA).
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"
#include "kernels/cuda/attend/hopper/decode_producer.cuh"
#include "kernels/cuda/attend/hopper/wgmma.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"

namespace kvmesh::cuda {

/// Four warps: warp w has keys 16 * w .. 16 * w + 15 of the scores, and dims 16 * w .. of each 64
/// of the outputs. This thread has columns 8 * j + 2 * t + c, which are query rows, of both.
class DecodeMath {
 public:
  __device__ DecodeMath(const AttendParams& params, const DecodeShared& shared)
      : p_(params), shared_(shared) {}

  __device__ void run() {
    griddepcontrol_wait();
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.piece_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      fence_proxy_async();  // the queries, for the tensor cores
      attend(task, shared_.queries(slot));
      finish(task, slot);
      __syncwarp();
      if (lane() == 0) mbarrier_arrive(shared_.piece_empty(slot));
    }
  }

 private:
  static constexpr int kTiles = kRows / 8;      // of columns
  static constexpr int kDimTiles = kDimV / 64;  // of outputs

  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int column(int j, int c) { return 8 * j + lane() % 4 * 2 + c; }
  __device__ static void sync() { asm volatile("barrier.cta.sync 1, 128;" ::: "memory"); }
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

  __device__ void attend(const DeviceTask& task, std::uint32_t queries) {
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
    const int tiles = DecodeStream::tiles_of(task);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile, ++tile_) {
      const int stage = tile_ % kStages;
      const std::uint32_t parity = tile_ / kStages % 2;
      const int live = task.keys - tile * kTileKeys;
      float s[kRows / 2];
      multiply_keys(stage, parity, queries, live, tile * kTileKeys, task, s);
      softmax(s, stage, parity, live);
      add_values(stage, parity);
    }
  }

  __device__ void multiply_keys(int stage, std::uint32_t parity, std::uint32_t queries, int live,
                                int first_key, const DeviceTask& task, float (&s)[kRows / 2]) {
    mbarrier_wait(shared_.keys_full(stage), parity);
    const bool check = live < kTileKeys || shared_.masked(stage) != 0;
    const std::uint64_t keys =
        wgmma_operand(shared_.keys(stage), kAtomBytes, kImageK.group_bytes());
    const std::uint64_t rows = wgmma_operand(queries, kAtomBytes, kImageK.group_bytes());
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDimK / 16; ++k) {
      const int further = (k / 4 * kAtomBytes + k % 4 * 32) / 16;
      wgmma<Rows::kAlongK>(s, keys + further, rows + further, k > 0);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
    wgmma_tie(s);
    if (!kFoldScale || check) modify(task, stage, first_key, check, s);
    if constexpr (kLatent) return;  // they are needed as values
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(shared_.keys_empty(stage));
  }

  /// Scales and modifies the scores where that is not left to the exponent, and hides what is not
  /// visible. Leaves them in units of log 2 unless the scale is folded.
  __device__ void modify(const DeviceTask& task, int stage, int first_key, bool check,
                         float (&s)[kRows / 2]) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int in_tile = warp() * 16 + h * 8 + lane() / 4;
      const Key key = key_of(shared_.visits(stage)[in_tile / kBoxRows], first_key + in_tile);
      const bool is_live = key.number < task.keys;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const Row row = row_of(p_, task, min(column(j, c), task.rows - 1));
          float& score = s[4 * j + 2 * h + c];
          if constexpr (!kFoldScale) score = modified(p_, task, row, key, score) * kLog2E;
          if (check && !(is_live && sees(p_, task, row, key))) score = kNoKeys;
        }
      }
    }
  }

  /// Turns scores into weights exp(score - max), in shared memory, and rescales what the rows have
  /// so far. All four warps have the same maxima. At the first barrier all have put their columns,
  /// and are done with the weights of the tile before; at the second, all have put their weights,
  /// and read the columns.
  __device__ void softmax(float (&s)[kRows / 2], int stage, std::uint32_t parity, int live) {
    const float scale = exponent_scale(p_);
    float* const columns = shared_.columns();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float top[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) top[c] = column_max(fmaxf(s[4 * j + c], s[4 * j + 2 + c]));
      if (lane() < 4) put_pair(columns + warp() * kRows + column(j, 0), top[0], top[1]);
    }
    sync();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      float top[2] = {max_[j][0], max_[j][1]};
#pragma unroll
      for (int w = 0; w < kMathWarps; ++w) {
        const float2 of_warp = *reinterpret_cast<const float2*>(columns + w * kRows + column(j, 0));
        top[0] = fmaxf(top[0], of_warp.x);
        top[1] = fmaxf(top[1], of_warp.y);
      }
      float keep[2];
#pragma unroll
      for (int c = 0; c < 2; ++c)
        keep[c] = weigh(s[4 * j + c], s[4 * j + 2 + c], j, c, top[c], scale);
      rescale(j, keep);
    }
    put_weights(s);
    if (live < kTileKeys) clear_values(stage, parity, live);
    fence_proxy_async();
    sync();
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

  /// Two scores of a column become weights. Returns what the column's former sum and outputs are to
  /// be multiplied by.
  __device__ float weigh(float& first, float& second, int j, int c, float top, float scale) {
    // Nothing visible yet: -inf - -inf must not be computed. A NaN is no maximum, but stays one.
    const float shift = top == kNoKeys ? 0.0f : top * scale;
    // Exactly 1 while the maximum stands: thousands of steps of a rounded 1 would add up.
    const float keep = max_[j][c] == top ? 1.0f : ex2_approx(max_[j][c] * scale - shift);
    max_[j][c] = top;
    first = ex2_approx(first * scale - shift);
    second = ex2_approx(second * scale - shift);
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
    return pack_pair<kPoolType>(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]);
  }

  /// Slots past the end of a sequence may hold anything, and 0 * NaN is NaN. Those of latent pages
  /// are keys too, which all warps are done with.
  __device__ void clear_values(int stage, std::uint32_t parity, int live) const {
    constexpr int kUnits = kDimV / 8;
    mbarrier_wait(shared_.values_full(stage), parity);
    for (int i = threadIdx.x; i < (kTileKeys - live) * kUnits; i += kMathThreads) {
      st_shared_v4(shared_.values(stage) + kImageV.unit(live + i / kUnits, i % kUnits), uint4{});
    }
  }

  __device__ void add_values(int stage, std::uint32_t parity) {
    mbarrier_wait(shared_.values_full(stage), parity);
    const std::uint64_t values =
        wgmma_operand(shared_.values(stage), kAtomBytes, kImageV.group_bytes());
    const std::uint64_t weights = wgmma_operand(shared_.weights(), kAtomBytes, kAtomBytes);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
#pragma unroll
      for (int m = 0; m < kDimTiles; ++m) {
        wgmma<Rows::kAcrossK>(o_[m], values + (k * 2 * kImageV.group_bytes() + m * kAtomBytes) / 16,
                              weights + k * 32 / 16, true);
      }
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) wgmma_tie(o_[m]);
    if (lane() == 0) mbarrier_arrive(shared_.values_empty(stage));
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

  /// Did a product spoil a row whose weights are all in order? Or did all weights round to 0, which
  /// takes scores so large that a unit in their last place exceeds 100?
  __device__ bool spoilt(const DeviceTask& task) const {
    bool found = false;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float probe = 0.0f;
#pragma unroll
        for (int m = 0; m < kDimTiles; ++m) {
          probe += o_[m][4 * j + c] * 0.0f + o_[m][4 * j + 2 + c] * 0.0f;
        }
        const bool is_lost = sum_[j][c] == 0.0f && max_[j][c] != kNoKeys;
        found |=
            (is_lost || (probe != probe && sum_[j][c] == sum_[j][c])) && column(j, c) < task.rows;
      }
    }
    return found;
  }

  __device__ void attend_plainly(const DeviceTask& task, int slot) const {
#pragma unroll 1
    for (int r = warp(); r < task.rows; r += kMathWarps) {
      PlainRow(p_, task, r, shared_.plain_query(slot, warp())).run();
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
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        const OutputRow to = output_row(p_, task, r);
#pragma unroll
        for (int m = 0; m < kDimTiles; ++m) {
          const int dim = m * 64 + warp() * 16 + lane() / 4;
          to.put(dim, o_[m][4 * j + c] * inverse);
          to.put(dim + 8, o_[m][4 * j + 2 + c] * inverse);
        }
        if (threadIdx.x < 4) put_lse(p_, task, r, log_sum_exp(p_, max_[j][c], sum));
      }
    }
  }

  const AttendParams& p_;
  const DecodeShared& shared_;
  int tile_ = 0;  // of all that this thread block computed
  float max_[kTiles][2];
  float sum_[kTiles][2];  // over this thread's keys only, until the piece ends
  float o_[kDimTiles][kRows / 2];
};

}  // namespace kvmesh::cuda

/// Grid: any size up to that of the tasks' array, pieces are claimed. Block: kDecodeThreads.
/// Dynamic shared memory: kTile.bytes(). May be launched to overlap, unless the kernel
/// before it is one of the plan: the plan is read before that kernel's end is waited for.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kDecodeThreads, kvmesh::kBlocksPerSm)
    kvmesh_attend_decode(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  using namespace kvmesh::cuda;
  extern __shared__ __align__(1024) char kvmesh_shared[];
  const DecodeShared shared(kvmesh_shared);
  if (threadIdx.x == 0) {
    shared.init_barriers();
    prefetch_tensormap(params.k_map);
    prefetch_tensormap(params.v_map);
  }
  __syncthreads();
  if (threadIdx.x >= kMathThreads) {
    DecodeProducer(params, shared).run();
    griddepcontrol_launch_dependents();
  } else {
    DecodeMath(params.attend, shared).run();
  }
}
