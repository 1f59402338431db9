// attend_partial for many rows on Hopper: prefill and long chunks, float16 or bfloat16 pages, head
// dims of 64, 128 and 192 with values of 64 or 128.
//
// Consumers are warpgroups of 64 packed query rows (row r is token r / group, head r % group). Each
// multiplies queries by the keys of a tile, both from shared memory, and the weights, in registers,
// by its values:
//
//   S [64, 128]      = Q K^T        scores of the next tile, while
//   O [64, v_dim]   += P V          the products of this one are under way
//
// A producer warp claims pieces and brings keys and values by the copy engine, one box per page and
// head; three more bring queries.
//
//   operations per tile and consumer: 2 * 64 * 128 * (k_dim + v_dim), 1,043 cycles of the tensor
//   cores at dim 128; beside them 64 exponentials a thread and their sums, which take as long. So
//   the length of a consumer's own path decides, and instructions per score count: the exponents'
//   reference (the row's maximum, usually) is brought up to date only when a weight exceeds 2^8.
//
// Sources: FlashAttention-3 (Shah et al., 2024): scores of a tile beside the products of the one
// before; late rescaling as in FlashAttention-4 (2025).
#pragma once

#include "kernels/cuda/attend/common/softmax.cuh"
#include "kernels/cuda/attend/hopper/prefill_producer.cuh"
#include "kernels/cuda/attend/hopper/wgmma.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"

namespace kvmesh::cuda {

/// A warpgroup of 64 rows. With g = lane / 4 and t = lane % 4, this thread has rows 16 * warp + g
/// and that + 8, columns 8 * j + 2 * t and the one after it, of scores and outputs.
class PrefillMath {
 public:
  __device__ PrefillMath(const AttendParams& params, const PrefillShared& shared)
      : p_(params), shared_(shared) {}

  __device__ void run() {
    griddepcontrol_wait();
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.task_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      mbarrier_wait(shared_.queries_full(slot), n / kPieceRing % 2);
      fence_proxy_async();  // the queries, for the tensor cores
      attend(task, slot);
      finish(task, slot);
      __syncwarp();
      if (lane() == 0) mbarrier_arrive(shared_.piece_empty(slot));
    }
  }

 private:
  static constexpr int kKeyTiles = kPrefillKeys / 8;
  static constexpr int kValueTiles = kDimV / 8;
  using Scores = float[kPrefillKeys / 2];
  using Weights = std::uint32_t[kPrefillKeys / 16][4];

  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int row(int h) { return warp() * 16 + h * 8 + lane() / 4; }
  // The warps that wait for one another: a consumer's, so that one's products fill the time in
  // which the other has none. At large dims registers do not suffice for that; then they are all
  // warps.
  static constexpr int kTeamWarps = kPieceRing > 1 ? kConsumerWarps : kMathWarps;
  static constexpr int kTeamThreads = 32 * kTeamWarps;
  __device__ static int team() { return kTeamWarps == kMathWarps ? 0 : warp() / kTeamWarps; }

  __device__ static bool any(bool value) {
    int found;
    asm volatile(
        "{\n.reg .pred in, out;\nsetp.ne.b32 in, %1, 0;\n"
        "barrier.cta.red.or.pred out, %2, %3, in;\nselp.b32 %0, 1, 0, out;\n}"
        : "=r"(found)
        : "r"(static_cast<int>(value)), "r"(1 + team()), "n"(kTeamThreads)
        : "memory");
    return found != 0;
  }
  __device__ static void sync() {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + team()), "n"(kTeamThreads) : "memory");
  }
  __device__ static void release(std::uint32_t barrier) {
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(barrier);
  }

  __device__ void attend(const DeviceTask& task, int slot) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      reference_[h] = kNoKeys;
      sum_[h] = 0.0f;
      if constexpr (kHasScoreMod || kHasMaskMod || kHasHeadClasses) {
        rows_[h] = row_of(p_, task, min(row(h), task.rows - 1));
      }
    }
#pragma unroll
    for (int i = 0; i < kDimV / 2; ++i) o_[i] = 0.0f;
    const int tiles = PrefillStream::tiles_of(task);
    if (tiles == 0) return;
    const std::uint64_t queries = wgmma_operand(shared_.queries(slot, warp() / kConsumerWarps),
                                                kAtomBytes, kImageK.group_bytes());
    Scores s;
    Weights weights;
    float keep[2];
    wait_keys();
    wgmma_fence();
    multiply_keys(queries, s);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    wgmma_tie(s);
    softmax(task, 0, s, keep);
    pack(s, weights);
    for (int tile = 1; tile < tiles; ++tile) {
      ++tile_;
      wait_keys();
      wgmma_fence();
      multiply_keys(queries, s);
      wgmma_commit_group();
      wait_values(tile_ - 1);
      wgmma_fence();
      add_values(tile_ - 1, weights);
      wgmma_commit_group();
      wgmma_wait_group<1>();
      wgmma_tie(s);
      const bool changed = softmax(task, tile, s, keep);
      wgmma_tie(s);
      asm volatile("" : "+f"(sum_[0]), "+f"(sum_[1]));
      end_basic_block(fabsf(sum_[0]));
      wgmma_wait_group<0>();
      wgmma_tie(o_);
      release(shared_.values_empty((tile_ - 1) % kPrefillStages));
      if (changed) rescale(keep);
      pack(s, weights);
    }
    clear_values(task.keys - (tiles - 1) * kPrefillKeys);
    wait_values(tile_);
    wgmma_fence();
    add_values(tile_, weights);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    wgmma_tie(o_);
    release(shared_.values_empty(tile_ % kPrefillStages));
    ++tile_;
  }

  __device__ void wait_keys() const {
    mbarrier_wait(shared_.keys_full(tile_ % kPrefillStages), tile_ / kPrefillStages % 2);
  }
  __device__ void wait_values(int tile) const {
    mbarrier_wait(shared_.values_full(tile % kPrefillStages), tile / kPrefillStages % 2);
  }

  __device__ void multiply_keys(std::uint64_t queries, Scores& s) const {
    const std::uint64_t keys =
        wgmma_operand(shared_.keys(tile_ % kPrefillStages), kAtomBytes, kImageK.group_bytes());
#pragma unroll
    for (int k = 0; k < kDimK / 16; ++k) {
      const int further = (k / 4 * kAtomBytes + k % 4 * 32) / 16;
      wgmma<Rows::kAlongK>(s, queries + further, keys + further, k > 0);
    }
  }

  __device__ void add_values(int tile, const Weights& weights) {
    const std::uint64_t values =
        wgmma_operand(shared_.values(tile % kPrefillStages), kAtomBytes, kImageV.group_bytes());
#pragma unroll
    for (int k = 0; k < kPrefillKeys / 16; ++k) {
      wgmma_add(o_, weights[k], values + k * 2 * kImageV.group_bytes() / 16);
    }
  }

  /// Turns scores of a tile of the task into weights exp(score - reference). Returns whether the
  /// reference was raised; then what the rows have so far is to be multiplied by `keep`.
  __device__ bool softmax(const DeviceTask& task, int tile, Scores& s, float (&keep)[2]) {
    const int stage = tile_ % kPrefillStages;
    const int first_key = tile * kPrefillKeys;
    const bool check = task.keys - first_key < kPrefillKeys || shared_.masked(stage) != 0;
    if (!kFoldScale || check) modify(task, stage, first_key, check, s);
    release(shared_.keys_empty(stage));
    const float scale = exponent_scale(p_);
    float top[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 1; i < kPrefillKeys / 2; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
    const float slack = kSlack / scale;
    const bool changed =
        __any_sync(kAllLanes, top[0] > reference_[0] + slack || top[1] > reference_[1] + slack);
    if (changed) {
#pragma unroll
      for (int h = 0; h < 2; ++h) raise(top[h], h, scale, keep[h]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Nothing visible yet: -inf - -inf must not be computed. A NaN is no maximum, but stays one.
      const float shift = reference_[h] == kNoKeys ? 0.0f : reference_[h] * scale;
      float total[2] = {0.0f, 0.0f};
#pragma unroll
      for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = s[4 * j + 2 * h + c];
          score = ex2_approx(score * scale - shift);
          total[c] += score;
        }
      }
      sum_[h] += total[0] + total[1];
    }
    return changed;
  }

  __device__ void raise(float top, int h, float scale, float& keep) {
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    top = fmaxf(top, reference_[h]);
    const float shift = top == kNoKeys ? 0.0f : top * scale;
    // Exactly 1 while the reference stands: thousands of steps of a rounded 1 would add up.
    keep = reference_[h] == top ? 1.0f : ex2_approx(reference_[h] * scale - shift);
    reference_[h] = top;
    sum_[h] *= keep;
  }

  __device__ void rescale(const float (&keep)[2]) {
#pragma unroll
    for (int i = 0; i < kDimV / 2; ++i) o_[i] *= keep[i / 2 % 2];
  }

  __device__ static void pack(const Scores& s, Weights& weights) {
#pragma unroll
    for (int k = 0; k < kPrefillKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[k][i] = pack_pair<kPoolType>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
      }
    }
  }

  /// Scales and modifies the scores where that is not left to the exponent, and hides what is not
  /// visible. Leaves them in units of log 2 unless the scale is folded.
  __device__ void modify(const DeviceTask& task, int stage, int first_key, bool check,
                         Scores& s) const {
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
      if constexpr (kFoldScale) {
        const bool is_masked = shared_.visits(stage)[8 * j / kBoxRows].masked;
        if (!is_masked && first_key + 8 * j + 8 <= task.keys) continue;
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int in_tile = 8 * j + lane() % 4 * 2 + c;
        const Key key = key_of(shared_.visits(stage)[in_tile / kBoxRows], first_key + in_tile);
        const bool is_live = key.number < task.keys;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& score = s[4 * j + 2 * h + c];
          if constexpr (!kFoldScale) score = modified(p_, task, rows_[h], key, score) * kLog2E;
          if (check && !(is_live && sees(p_, task, rows_[h], key))) score = kNoKeys;
        }
      }
    }
  }

  /// Slots past the end of a sequence, in its last page, may hold anything, and 0 * NaN is NaN. Of
  /// the last tile. Each team clears them all, rather than wait for the other.
  __device__ void clear_values(int live) const {
    const int unused = -live & (kBoxRows - 1);
    if (unused == 0) return;
    constexpr int kUnits = kDimV / 8;
    wait_values(tile_);
    for (int i = threadIdx.x - team() * kTeamThreads; i < unused * kUnits; i += kTeamThreads) {
      st_shared_v4(
          shared_.values(tile_ % kPrefillStages) + kImageV.unit(live + i / kUnits, i % kUnits),
          uint4{});
    }
    fence_proxy_async();
    sync();
  }

  // ---- The end of a piece ----

  __device__ void finish(const DeviceTask& task, int slot) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum_[h] += __shfl_xor_sync(kAllLanes, sum_[h], 1);
      sum_[h] += __shfl_xor_sync(kAllLanes, sum_[h], 2);
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
    for (int h = 0; h < 2; ++h) {
      float probe = 0.0f;
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        probe += o_[4 * n + 2 * h] * 0.0f + o_[4 * n + 2 * h + 1] * 0.0f;
      }
      const bool is_lost = sum_[h] == 0.0f && reference_[h] != kNoKeys;
      found |= (is_lost || (probe != probe && sum_[h] == sum_[h])) && row(h) < task.rows;
    }
    return found;
  }

  __device__ void attend_plainly(const DeviceTask& task, int slot) const {
    constexpr int kTeamRows = 16 * kTeamWarps;
    const int end = min(task.rows, (team() + 1) * kTeamRows);
#pragma unroll 1
    for (int r = team() * kTeamRows + warp() - team() * kTeamWarps; r < end; r += kTeamWarps) {
      PlainRow(p_, task, r, shared_.plain_query(slot, warp())).run();
    }
  }

  __device__ void store(const DeviceTask& task) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = row(h);
      if (r >= task.rows) continue;
      const float inverse = sum_[h] == 0.0f ? 0.0f : 1.0f / sum_[h];
      const OutputRow to = output_row(p_, task, r);
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n) {
        to.put_pair(n * 8 + lane() % 4 * 2, o_[4 * n + 2 * h] * inverse,
                    o_[4 * n + 2 * h + 1] * inverse);
      }
      if (lane() % 4 == 0) put_lse(p_, task, r, log_sum_exp(p_, reference_[h], sum_[h]));
    }
  }

  /// How far a score may exceed the reference, as a power of 2: weights up to 2^8 lose nothing,
  /// being floating-point numbers.
  static constexpr float kSlack = 8.0f;

  const AttendParams& p_;
  const PrefillShared& shared_;
  int tile_ = 0;        // of all that this thread block computed
  Row rows_[2];         // where a mod or a mask asks for them
  float reference_[2];  // of the exponents, in the scores' units
  float sum_[2];        // over this thread's columns only, until the piece ends
  float o_[kDimV / 2];
};

}  // namespace kvmesh::cuda

/// Grid: any size up to that of the tasks' array, pieces are claimed. Block: kTile.threads().
/// Dynamic shared memory: kTile.bytes(). May be launched to overlap, unless the kernel before it is
/// one of the plan.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kTile.threads(), 1)
    kvmesh_attend_prefill(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  using namespace kvmesh::cuda;
  extern __shared__ __align__(1024) char kvmesh_shared[];
  const PrefillShared shared(kvmesh_shared);
  if (threadIdx.x == 0) {
    shared.init_barriers();
    prefetch_tensormap(params.k_map);
    prefetch_tensormap(params.v_map);
  }
  __syncthreads();
  // The consumers get most of the registers: 168 per thread at entry, 3 * 168 = 2 * 224 + 56.
  if (threadIdx.x >= kMathThreads) {
    if constexpr (kvmesh::kConsumers == 2) setmaxnreg_dec<56>();
    const int thread = threadIdx.x - kMathThreads;
    if (thread < 32) {
      PrefillProducer(params, shared).run();
      griddepcontrol_launch_dependents();
    } else {
      PrefillQueries(params.attend, shared).run(thread - 32);
    }
  } else {
    if constexpr (kvmesh::kConsumers == 2) setmaxnreg_inc<224>();
    PrefillMath(params.attend, shared).run();
  }
}
