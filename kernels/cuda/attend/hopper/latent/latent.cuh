// attend_partial over latent pages on Hopper, for more query heads than 32: 64 packed query rows,
// float16 or bfloat16 pages whose values are the first 512 elements of their keys (MLA).
//
// Outputs of 64 rows, 64 x 512 in float32, are half of an SM's registers, so that no second block
// of rows can fill the time of a softmax. Two warpgroups (teams) share the rows instead: each has
// half of the columns of the outputs, and computes the scores of every second tile:
//
//   team 0   S0 = Q K0^T   softmax -> P0   O[:, left]  += P0 V0[:, left]    += P1 V1[:, left]
//   team 1   S1 = Q K1^T   P0 arrives      O[:, right] += P0 V0[:, right]   softmax -> P1 ...
//
// While one has its softmax the other's products run. Weights and the exponents' reference go from
// one to the other through shared memory: the weights to the elements of their own keys that are no
// values, which nothing reads after the scores. Each half of a tile is filled again as soon as its
// last reader is done.
//
//   shared memory: queries 72 KB, two tiles of 72 KB
//   operations per tile: 2 * 64 * 64 * (k_dim + v_dim), 36 products of 33 cycles for the scores and
//   8 of 129 for the outputs: 2,220 cycles of the tensor cores for 72 KB, twice as long as memory
//   takes. 128 heads are two thread blocks, which read the same pages at about the same time: the
//   second finds them in L2.
//
// Sources: two warpgroups that halve the outputs and exchange weights (FlashMLA's seesaw schedule,
// DeepSeek, 2025); late rescaling as in FlashAttention-4 (2025).
#pragma once

#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"
#include "kernels/cuda/attend/hopper/latent/latent_producer.cuh"
#include "kernels/cuda/attend/hopper/row_exponents.cuh"
#include "kernels/cuda/attend/hopper/row_outputs.cuh"
#include "kernels/cuda/attend/hopper/run_block.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"

namespace kvmesh::cuda {

/// A warpgroup. With g = lane / 4 and t = lane % 4, this thread has rows 16 * warp + g and that + 8
/// (of the warps of its team), columns 8 * j + 2 * t and the one after it, of scores and outputs.
class LatentMath {
 public:
  __device__ LatentMath(const HopperParams& params, const LatentShared& shared)
      : p_(params.attend),
        shared_(shared),
        team_(__shfl_sync(kAllLanes, threadIdx.x / kTeamThreads, 0)) {}

  __device__ void run() {
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      mbarrier_wait(shared_.task_full(), n % 2);
      const DeviceTask& task = shared_.task(0);
      if (task.rows == 0) return;
      mbarrier_wait(shared_.queries_full(), n % 2);
      fence_proxy_async();  // the queries, for the tensor cores
      attend(task);
      finish(task);
      release(shared_.piece_empty());
    }
  }

 private:
  static constexpr int kKeyTiles = kLatentKeys / 8;
  using Scores = float[kLatentKeys / 2];
  static constexpr int kScoreSteps = kDimK / 16;
  static constexpr int kLeftSteps = kTile.left_dim() / 16;
  /// The number of the scores' products that start before the wait for the previous tile's weights.
  static constexpr int kEarlySteps = kLeftSteps;

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int row(int h) {
    return threadIdx.x % kTeamThreads / 32 * 16 + h * 8 + lane() / 4;
  }
  __device__ static void release(std::uint32_t barrier) {
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(barrier);
  }

  /// Waits for half of a tile. Rows that threads have gathered need a fence then. The team that
  /// follows needs none: the leading team has made one before it gave the weights.
  __device__ static void wait_full(std::uint32_t barrier, std::uint32_t parity) {
    mbarrier_wait(barrier, parity);
    if constexpr (kGathers) fence_proxy_async();
  }

  /// Each team multiplies all weights by its values; it makes those of every second tile.
  __device__ void attend(const DeviceTask& task) {
    exponents_ = {};
    if constexpr (kHasScoreMod || kHasMaskMod || kHasHeadClasses) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        positions_[h] = row_of(p_, task, min(row(h), task.rows - 1)).position;
    }
#pragma unroll
    for (int i = 0; i < kTile.left_dim() / 2; ++i) o_[i] = 0.0f;
    const int first = tile_, end = first + LatentStream::tiles_of(task);
    int tile = first;
    Scores s;
    if (tile < end && tile % kLatentStages == team_) {  // no weights come before these
      start_scores(tile, 0, kScoreSteps, s);
      lead(task, tile, first, s);
      ++tile;
    }
    for (; tile + 1 < end; tile += 2) {
      start_scores(tile + 1, 0, kEarlySteps, s);
      follow(tile);
      start_scores(tile + 1, kEarlySteps, kScoreSteps, s);
      wgmma_wait_group<1>();
      wgmma_tie(o_);
      release_tile(tile);
      lead(task, tile + 1, first, s);
    }
    if (tile < end) {
      follow(tile);
      wgmma_wait_group<0>();
      wgmma_tie(o_);
      release_tile(tile);
    }
    tile_ = end;
  }

  /// The scores of a tile of the piece that begins with `first` are under way: makes weights of
  /// them, for both teams, and multiplies by them.
  __device__ void lead(const DeviceTask& task, int tile, int first, Scores& s) {
    wgmma_wait_group<0>();
    wgmma_tie(s);
    const int first_key = (tile - first) * kLatentKeys, stage = tile % kLatentStages;
    softmax(task, first_key, stage, s);
    give(task.keys - first_key, stage, s);
    add_values(stage);
    wgmma_wait_group<0>();
    wgmma_tie(o_);
    release_tile(tile);
  }

  /// Starts the products with the weights that the other team makes of a tile.
  __device__ void follow(int tile) {
    const int stage = tile % kLatentStages;
    Teams::wait_weights(stage);
    const float* const references = shared_.rows(stage);
    const float to[2] = {references[row(0)], references[row(1)]};
    if (__any_sync(kAllLanes, to[0] != exponents_.reference[0] || to[1] != exponents_.reference[1]))
      raise(to);
    add_values(stage);
  }

  /// Makes weights visible to both teams.
  __device__ void give(int live, int stage, const Scores& s) const {
    Teams::sync(team_);  // all warps are done with the keys whose place the weights take
    put_weights(stage, s);
    if (live < kLatentKeys) clear_values(live, stage);
    fence_proxy_async();
    if (live < kLatentKeys) Teams::sync(team_);
    __syncwarp();
    Teams::give_weights(stage);
  }

  /// Starts products of the queries and a tile's keys, each of 16 elements of a row.
  __device__ void start_scores(int tile, int begin, int end, Scores& s) const {
    const int stage = tile % kLatentStages;
    const std::uint32_t parity = tile / kLatentStages % 2;
    const std::uint64_t queries = kImageQ.operand(shared_.queries());
    const std::uint64_t left = kImageLeft.operand(shared_.left(stage));
    const std::uint64_t right = kImageRight.operand(shared_.right(stage));
    if (begin == end) return;
    if (begin == 0) wait_full(shared_.left_full(stage), parity);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kScoreSteps; ++k) {
      if (k < begin || k >= end) continue;
      if (k == kLeftSteps) {
        wait_full(shared_.right_full(stage), parity);
        wgmma_fence();
      }
      const std::uint64_t keys = k < kLeftSteps
                                     ? left + kImageLeft.further(k * 16)
                                     : right + kImageRight.further((k - kLeftSteps) * 16);
      wgmma<Rows::kAlongK>(s, queries + kImageQ.further(k * 16), keys, k > 0);
    }
    wgmma_commit_group();
  }

  __device__ void add_values(int stage) {
    const std::uint64_t weights = kImageRight.operand(shared_.weights(stage));
    const std::uint64_t values = team_ == 0 ? kImageLeft.operand(shared_.left(stage))
                                            : kImageRight.operand(shared_.right(stage));
    const int group = team_ == 0 ? kImageLeft.group_bytes() : kImageRight.group_bytes();
    wgmma_tie(o_);  // zeroed or rescaled before the fence
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kLatentKeys / 16; ++k) {
      wgmma<Rows::kAlongK, Rows::kAcrossK>(o_, weights + kImageRight.further(k * 16),
                                           values + k * 2 * group / 16, true);
    }
    wgmma_commit_group();
  }

  __device__ void release_tile(int tile) const {
    release(shared_.right_empty(tile % kLatentStages));
    if (team_ == 0 && lane() == 0) mbarrier_arrive(shared_.left_empty(tile % kLatentStages));
  }

  /// Turns scores of a tile into weights exp(score - reference), and writes the reference for the
  /// other team.
  __device__ void softmax(const DeviceTask& task, int first_key, int stage, Scores& s) {
    const bool check = task.keys - first_key < kLatentKeys || shared_.masked(stage) != 0;
    if (!kFoldScale || check) modify(task, first_key, stage, check, s);
    const float scale = exponent_scale(p_);
    float top[2];
    find_top(s, top);
    if (exponents_.exceed(top, scale, kSlack)) {
      const float to[2] = {exponents_.of_row(0, top[0]), exponents_.of_row(1, top[1])};
      raise(to);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (lane() % 4 == 0) shared_.rows(stage)[row(h)] = exponents_.reference[h];
    }
    float sums[2];
    exponents_.exponentiate(s, scale, sums);
  }

  /// Raises the reference, and what is relative to it: sums and outputs, which are not under way.
  __device__ void raise(const float (&to)[2]) {
    const float scale = exponent_scale(p_);
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) keep[h] = exponents_.raise(h, to[h], scale);
#pragma unroll
    for (int i = 0; i < kTile.left_dim() / 2; ++i) o_[i] *= keep[i / 2 % 2];
  }

  /// Computed again for each tile: registers do not suffice for more of a row than its position.
  __device__ Row row_at(const DeviceTask& task, int h) const {
    const int r = min(row(h), task.rows - 1);
    return {token_of(p_, task, r), task.kv_head * kGroup + r % kGroup, positions_[h]};
  }

  /// Scales and modifies the scores where that is not left to the exponent, and hides what is not
  /// visible.
  __device__ void modify(const DeviceTask& task, int first_key, int stage, bool check,
                         Scores& s) const {
    const Row rows[2] = {row_at(task, 0), row_at(task, 1)};
    const int live = task.keys - first_key - lane() % 4 * 2;  // from this thread's first column on
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const Key key = key_in_box(stage, first_key, 8 * j, c);
        const bool is_live = 8 * j + c < live;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& score = s[4 * j + 2 * h + c];
          if constexpr (!kFoldScale) score = modified(p_, task, rows[h], key, score);
          if (check && !(is_live && sees(p_, task, rows[h], key))) score = kNoKeys;
        }
      }
    }
  }

  /// Returns the key of this thread's column `c` of the 8 from `of_8` on. Where a box has 8 keys,
  /// the numbers that depend on the box alone are computed once for all.
  __device__ Key key_in_box(int stage, int first_key, int of_8, int c) const {
    const int column = lane() % 4 * 2 + c;
    const int in_tile = of_8 + column;
    if constexpr (kBoxRows < 8) {
      return key_of(shared_.visits(stage)[in_tile / kBoxRows], first_key + in_tile);
    } else {
      const int begin = of_8 / kBoxRows * kBoxRows;
      const Key first = key_of(shared_.visits(stage)[of_8 / kBoxRows], first_key + begin);
      return {first_key + in_tile, first.position + lane() % 4 * 2 + (of_8 - begin + c),
              first.visit};
    }
  }

  __device__ void put_weights(int stage, const Scores& s) const {
    const int row = threadIdx.x % kTeamThreads / 32 * 16 + lane() % 16;
#pragma unroll
    for (int j = 0; j < kKeyTiles; j += 2) {
      const int unit = kWeightsUnit + j + lane() / 16;
      stmatrix_x4(shared_.right(stage) + kImageRight.unit(row, unit), pair_of(s, j, 0),
                  pair_of(s, j, 1), pair_of(s, j + 1, 0), pair_of(s, j + 1, 1));
    }
  }
  __device__ static std::uint32_t pair_of(const Scores& s, int j, int h) {
    return pack_pair<kPoolType>(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]);
  }

  /// Clears slots past the end of a sequence, which may hold anything: 0 * NaN is NaN.
  __device__ void clear_values(int live, int stage) const {
    constexpr int kUnits = kTile.left_dim() / 8;
    const int unused = kLatentKeys - live;
    for (int i = threadIdx.x % kTeamThreads; i < unused * kUnits; i += kTeamThreads) {
      const int key = live + i / kUnits, unit = i % kUnits;
      st_shared_v4(shared_.left(stage) + kImageLeft.unit(key, unit), uint4{});
      st_shared_v4(shared_.right(stage) + kImageRight.unit(key, unit), uint4{});
    }
  }

  // ---- The end of a piece ----

  __device__ void finish(const DeviceTask& task) {
    Teams::sync_both();  // all have read the references
    exponents_.add_up();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (lane() % 4 == 0) shared_.rows(team_)[row(h)] = exponents_.sum[h];
    }
    Teams::sync_both();
#pragma unroll
    for (int h = 0; h < 2; ++h)
      exponents_.sum[h] = shared_.rows(0)[row(h)] + shared_.rows(1)[row(h)];
    // A value that is NaN or infinite, in a key that a row does not see, makes 0 * NaN. That is so
    // rare that it is looked for here only; then the piece is computed again, key by key.
    if (Teams::any(spoilt(task))) return attend_plainly(task);
    store(task);
  }

  __device__ bool spoilt(const DeviceTask& task) const {
    bool found = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) found |= exponents_.is_spoilt(h, o_) && row(h) < task.rows;
    return found;
  }

  __device__ void attend_plainly(const DeviceTask& task) const {
    const int warp = threadIdx.x / 32;
#pragma unroll 1
    for (int r = warp; r < task.rows; r += kMathWarps) {
      RarePlainRow(p_, task, r, shared_.plain_query(warp)).run();
    }
  }

  __device__ void store(const DeviceTask& task) {
#pragma unroll 1
    for (int h = 0; h < 2; ++h) {
      int r = row(h);
      asm volatile("" : "+r"(r));  // else its token and head are in registers all the while
      if (r < task.rows) store_first_row(task, r);
      exponents_.take_second_row();
      take_second_row(o_);
    }
  }

  /// `r` is its number.
  __device__ __forceinline__ void store_first_row(const DeviceTask& task, int r) const {
    const float lse = log_sum_exp(p_, exponents_.reference[0], exponents_.sum[0]);
    const RowEnd end = row_end(p_, task, r, exponents_.sum[0], lse);
    store_pairs(output_row(p_, task, r), team_ * kTile.left_dim(), o_, end.factor);
    if (team_ == 0 && lane() % 4 == 0) put_lse(p_, task, r, end.lse);
  }

  const AttendParams& p_;
  const LatentShared& shared_;
  const int team_;
  int tile_ = 0;           // of all that this thread block computed
  int positions_[2] = {};  // of the rows, where a mod or a mask needs them
  RowExponents exponents_;
  float o_[kTile.left_dim() / 2];
};

struct LatentRoles {
  using Shared = LatentShared;
  using Math = LatentMath;
  using Producer = LatentProducer;
  using Queries = LatentQueries;
  static constexpr int kMathThreads = cuda::kMathThreads;
  static constexpr bool kMovesRegisters = true;
  static constexpr int kProducerRegisters = 56;
};

}  // namespace kvmesh::cuda

/// Grid: any size up to that of the tasks' array, pieces are claimed. Block: kLatentThreads.
/// Dynamic shared memory: kTile.bytes(). May be launched to overlap, unless the kernel before it is
/// one of the plan.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kLatentThreads, 1)
    kvmesh_attend_latent(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  extern __shared__ __align__(1024) char kvmesh_shared[];
  kvmesh::cuda::run_block<kvmesh::cuda::LatentRoles, !kvmesh::kGathers>(params, kvmesh_shared);
}
