// attend_partial for many rows on Hopper: prefill and long chunks, float16 or bfloat16 pages, head
// dims of 64 to 256, multiples of 32; float8 pages, multiples of 64.
//
// Consumers are warpgroups of 64 packed query rows (row r is token r / group, head r % group). Each
// multiplies queries by the keys of a tile, both from shared memory, and the weights, in registers,
// by its values:
//
//   S [64, keys]     = Q K^T        scores of the next tile, while
//   O [64, v_dim]   += P V          the products of this one are under way
//
// A producer warp claims pieces and copies keys and values by the copy engine, one box per page and
// head; three more copy queries and convert tiles of float8 pages to float16. If the copy engine
// cannot bring the pages, all four gather the rows (row_gather.cuh).
//
// A tile has 128 keys, or 64 where a head has more than 192 dims, or values more than 128.
//
//   operations per tile and consumer: 2 * 64 * keys * (k_dim + v_dim), 1,043 cycles of the tensor
//   cores at dim 128; beside them 64 exponentials a thread and their sums, which take as long. So
//   the length of a consumer's own path decides, and instructions per score count. The exponents'
//   reference need not be the row's maximum, only near it: a tile's weights are computed by the
//   reference of the tiles before, and their sums show whether it still serves. If it does not,
//   which is rare after a piece's first tile, the scores are computed again.
//
// Sources: FlashAttention-3 (Shah et al., 2024): scores of a tile beside the products of the one
// before; late rescaling as in FlashAttention-4 (2025).
#pragma once

#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_converter.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_float8.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_scores.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_team.cuh"
#include "kernels/cuda/attend/hopper/row_exponents.cuh"
#include "kernels/cuda/attend/hopper/row_outputs.cuh"
#include "kernels/cuda/attend/hopper/run_block.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"
#include "kernels/cuda/attend/plain/task_scale.cuh"

namespace kvmesh::cuda {

/// A warpgroup of 64 rows. With g = lane / 4 and t = lane % 4, this thread has rows 16 * warp + g
/// and that + 8, columns 8 * j + 2 * t and the one after it, of scores and outputs.
class PrefillMath : PrefillTeam {
 public:
  __device__ PrefillMath(const HopperParams& params, const PrefillShared& shared)
      : p_(params.attend), scales_(params.scales), shared_(shared) {}

  __device__ void run() {
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.task_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      mbarrier_wait(shared_.queries_full(slot), n / kPieceRing % 2);
      if (kPassesTasks && warp() / kConsumerWarps * kConsumerRows >= task.rows) {
        release_queries();
        pass(task);
      } else {
        take_queries(task);
        attend(task, slot);
        finish(task);
      }
      __syncwarp();
      if (lane() == 0) mbarrier_arrive(shared_.piece_empty(slot));
    }
  }

 private:
  using Scores = PrefillScores::Scores;
  using Weights = std::uint32_t[kPrefillKeys / 16][4];

  /// Makes the queries visible to the tensor cores.
  __device__ void take_queries(const DeviceTask& task) {
    if constexpr (kIsFloat8) {
      queries_.take(shared_, warp() * 16);
      const float scale = task_scale(scales_.k, task) * (kFoldScale ? exponent_scale(p_) : 1.0f);
#pragma unroll
      for (int h = 0; h < 2; ++h) factors_[h] = queries_.down[h] * scale;
    }
    if constexpr (kQueriesStay) fence_proxy_async();
    if constexpr (kIsFloat8 && kQueriesStay) sync();
    if constexpr (!kQueriesStay) release_queries();
  }
  __device__ void release_queries() const {
    if constexpr (kIsFloat8) release(shared_.queries_empty());
  }

  /// The factor of scores in exponents: each row's own where it includes those of the row.
  __device__ __forceinline__ decltype(auto) scale() const {
    if constexpr (kIsFloat8 && kFoldScale) {
      return (factors_);
    } else {
      return exponent_scale(p_);
    }
  }

  __device__ void attend(const DeviceTask& task, int slot) {
    begin_rows(task);
    const int tiles = PrefillStream::tiles_of(task);
    if (tiles == 0) {
      if constexpr (kQueriesStay) release_queries();
      return;
    }
    const std::uint64_t queries =
        kImageK.operand(uniform(shared_.queries(slot, warp() / kConsumerWarps)));
    Scores s;
    Weights weights;
    float keep[2];
    wait_keys();
    score(task, 0, queries, s);
    exponents_.softmax(s, top_, scale(), 0.0f, keep);
    values_.begin(end_keys(s));
    pack(s, weights);
    for (int tile = 1; tile < tiles; ++tile) {
      ++tile_;
      next_tile(task, tile, queries, s, weights, keep);
    }
    if constexpr (kQueriesStay) release_queries();
    if constexpr (!kIsFloat8) clear_values(task.keys - (tiles - 1) * kPrefillKeys);
    start_values(tile_, weights);
    end_values(tile_);
    ++tile_;
  }

  __device__ __forceinline__ void begin_rows(const DeviceTask& task) {
    exponents_ = {};
    values_ = {};
    if constexpr (kHasScoreMod || kHasMaskMod || kHasHeadClasses) {
#pragma unroll
      for (int h = 0; h < 2; ++h) rows_[h] = row_of(p_, task, min(row(h), task.rows - 1));
    }
#pragma unroll
    for (int i = 0; i < kDimV / 2; ++i) o_[i] = 0.0f;
  }

  /// Adds the values of the tile before by its `weights`, while the scores of this one become
  /// weights.
  __device__ __forceinline__ void next_tile(const DeviceTask& task, int tile, std::uint64_t queries,
                                            Scores& s, Weights& weights, float (&keep)[2]) {
    wait_keys();
    wgmma_fence();
    multiply_keys(queries, s);
    wgmma_commit_group();
    start_values(tile_ - 1, weights);
    wgmma_wait_group<1>();
    wgmma_tie(s);
    modify(task, tile, s);
    const RowExponents before = exponents_;
    bool raised = false;
    const bool fits = weigh(s, raised, keep);
    int exponent = 0;  // of the values' scales
    if (fits) exponent = end_keys(s);
    wgmma_tie(s);
    asm volatile("" : "+f"(exponents_.sum[0]), "+f"(exponents_.sum[1]));
    end_values(tile_ - 1);
    if (!fits) {
      exponents_ = before;
      score<true>(task, tile, queries, s);
      raised = exponents_.softmax(s, top_, scale(), 0.0f, keep);
      exponent = end_keys(s);
    }
    if constexpr (kRowScales) raised = values_.follow(exponent, raised, keep);
    if (raised) rescale(keep);
    pack(s, weights);
  }

  __device__ __forceinline__ void start_values(int tile, const Weights& weights) {
    wait_values(tile);
    wgmma_fence();
    add_values(tile, weights);
    wgmma_commit_group();
  }
  __device__ __forceinline__ void end_values(int tile) {
    wgmma_wait_group<0>();
    wgmma_tie(o_);
    release(shared_.values_empty(tile % kPrefillStages));
  }

  /// Gives back the tiles of a task of which this consumer has no rows.
  __device__ void pass(const DeviceTask& task) {
    for (int tiles = PrefillStream::tiles_of(task); tiles > 0; --tiles, ++tile_) {
      wait_keys();
      release_keys();
      wait_values(tile_);
      release(shared_.values_empty(tile_ % kPrefillStages));
    }
  }

  __device__ void wait_keys() const {
    mbarrier_wait(shared_.keys_full(tile_ % kPrefillStages), tile_ / kPrefillStages % 2);
    if constexpr (kGathers) fence_proxy_async();  // threads have written them
  }
  __device__ void wait_values(int tile) const {
    mbarrier_wait(shared_.values_full(tile % kPrefillStages), tile / kPrefillStages % 2);
    if constexpr (kGathers) fence_proxy_async();
  }

  __device__ void multiply_keys(std::uint64_t queries, Scores& s) const {
    const std::uint64_t keys = kImageK.operand(uniform(shared_.keys(tile_ % kPrefillStages)));
#pragma unroll
    for (int k = 0; k < kDimK / 16; ++k) {
      const int further = kImageK.further(k * 16);
      if (k < kRegisterSteps) {
        wgmma_float16(s, queries_.step(k), keys + further, k > 0);
      } else {
        wgmma<Rows::kAlongK>(s, queries + further, keys + further, k > 0);
      }
    }
  }

  __device__ void add_values(int tile, const Weights& weights) {
    const std::uint64_t values = kImageV.operand(uniform(shared_.values(tile % kPrefillStages)));
#pragma unroll
    for (int k = 0; k < kPrefillKeys / 16; ++k) {
      wgmma_add_parts<kImageV>(o_, weights[k], values + kImageV.further(0, k * 2));
    }
  }

  __device__ void release_keys() const { release(shared_.keys_empty(tile_ % kPrefillStages)); }

  /// Computes a tile's scores, with no other products under way. `Rarely`: as PrefillScores has it.
  template <bool Rarely = false>
  __device__ void score(const DeviceTask& task, int tile, std::uint64_t queries, Scores& s) {
    wgmma_fence();
    multiply_keys(queries, s);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    wgmma_tie(s);
    modify<Rarely>(task, tile, s);
  }
  template <bool Rarely = false>
  __device__ __forceinline__ void modify(const DeviceTask& task, int tile, Scores& s) {
    PrefillScores(p_, shared_, task, rows_, factors_, tile, tile_).modify<Rarely>(s, top_);
  }

  /// Multiplies weights by the scales of their values, and releases what came with the keys.
  /// Returns the scales' exponent.
  __device__ __forceinline__ int end_keys(Scores& weights) const {
    int exponent = 0;
    if constexpr (kRowScales) exponent = ValueReference::weigh(weights, shared_, tile_);
    release_keys();
    return exponent;
  }

  /// Turns scores into weights by the reference of the previous tiles, without computing their
  /// maximum. Returns whether the sums show that the reference still serves; if not, the scores are
  /// lost, and `softmax` needs them again. A warp with a row that has no reference yet takes that
  /// path at once. All warps of a consumer get the same answer, because they compute the scores
  /// together.
  __device__ bool weigh(Scores& s, bool& raised, float (&keep)[2]) {
    if constexpr (!kJudgesLate) {
      raised = exponents_.softmax(s, top_, scale(), kSlack, keep);
      return true;
    }
    bool fits = true;
    if (__any_sync(kAllLanes, exponents_.has_no_reference())) {
      raised = exponents_.softmax(s, top_, scale(), kSlack, keep);
    } else {
      float sums[2];
      exponents_.exponentiate(s, scale(), sums);
      fits = sums[0] <= kMostWeight && sums[1] <= kMostWeight;  // not NaN
    }
    return !any(!fits);
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
        weights[k][i] = pack_pair<kProductType>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
      }
    }
  }

  /// Clears slots of the last tile past the end of the sequence, which may hold anything: 0 * NaN
  /// is NaN. Each team clears all of them, rather than wait for the other.
  __device__ void clear_values(int live) const {
    const int unused = -live & (kBoxRows - 1);
    if (unused == 0) return;
    constexpr int kUnits = kImageV.stored_units();
    wait_values(tile_);
    for (int i = threadIdx.x - team() * kTeamThreads; i < unused * kUnits; i += kTeamThreads) {
      st_shared_v4(shared_.values(tile_ % kPrefillStages) +
                       kImageV.stored_unit(live + i / kUnits, i % kUnits),
                   uint4{});
    }
    fence_proxy_async();
    sync();
  }

  // ---- The end of a piece ----

  __device__ void finish(const DeviceTask& task) {
    exponents_.add_up();
    // A value that is NaN or infinite, in a key that a row does not see, makes 0 * NaN. That is so
    // rare that it is looked for here only; then the piece is computed again, key by key.
    if (__any_sync(kAllLanes, spoilt(task))) return attend_plainly(task);
    store(task);
  }

  __device__ bool spoilt(const DeviceTask& task) const {
    bool found = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      found |= (values_.has_wide_tiles() || exponents_.is_spoilt(h, o_)) && row(h) < task.rows;
    }
    return found;
  }

  /// The rows of this warp.
  __device__ void attend_plainly(const DeviceTask& task) const {
    const int end = min(task.rows, warp() * 16 + 16);
#pragma unroll 1
    for (int r = warp() * 16; r < end; ++r) {
      RarePlainRow(p_, task, r, shared_.plain_query(warp()), &scales_).run();
    }
  }

  __device__ void store(const DeviceTask& task) {
    const float value_scale = kRowScales ? values_.unit() : task_scale(scales_.v, task);
#pragma unroll 1
    for (int h = 0; h < 2; ++h) {
      store_first_row(task, row(h), value_scale);
      exponents_.take_second_row();
      take_second_row(o_);
      factors_[0] = factors_[1];
    }
  }

  /// `r` is its number.
  __device__ __forceinline__ void store_first_row(const DeviceTask& task, int r,
                                                  float value_scale) const {
    const bool is_there = r < task.rows;
    const float lse =
        log_sum_exp(scale_of_row(scale(), 0), exponents_.reference[0], exponents_.sum[0]);
    RowEnd end = row_end(p_, task, r, exponents_.sum[0], lse);
    end.factor *= value_scale;
    const OutputRow to = output_row(p_, task, min(r, task.rows - 1));
    if (__all_sync(kAllLanes, to.has_units())) {
      store_units(to, o_, end.factor, is_there);
    } else if (__all_sync(kAllLanes, to.has_quads())) {
      store_quads(to, o_, end.factor, is_there);
    } else if (is_there) {
      store_pairs(to, 0, o_, end.factor);
    }
    if (is_there && lane() % 4 == 0) put_lse(p_, task, r, end.lse);
  }

  /// False with a score mod, masks per head, or large dims: then registers do not suffice for
  /// computing scores again.
  static constexpr bool kJudgesLate =
      kFoldScale && !kHasHeadClasses && kTeamWarps == kConsumerWarps;

  const AttendParams& p_;
  const DeviceScales& scales_;
  const PrefillShared& shared_;
  int tile_ = 0;  // of all that this thread block computed
  Row rows_[2];   // where a mod or a mask asks for them
  // For float8 pages: queries, factors of the rows' products, and the reference of the values.
  Float8Queries queries_;
  PrefillScores::RowFactors factors_;
  ValueReference values_;
  RowExponents exponents_;
  float top_[2];  // of a tile's scores, where it is known
  float o_[kDimV / 2];
};

struct PrefillRoles {
  using Shared = PrefillShared;
  using Math = PrefillMath;
  using Producer = PrefillProducer;
  using Queries = PrefillLoader<kIsFloat8>::Type;
  static constexpr int kMathThreads = cuda::kMathThreads;
  static constexpr bool kMovesRegisters = kConsumers == 2;
  static constexpr int kProducerRegisters = kGathers ? 72 : 56;
};

}  // namespace kvmesh::cuda

/// Grid: any size up to that of the tasks' array, pieces are claimed. Block: kTile.threads().
/// Dynamic shared memory: kTile.bytes(). May be launched to overlap, unless the kernel before it is
/// one of the plan.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kTile.threads(), 1)
    kvmesh_attend_prefill(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  extern __shared__ __align__(1024) char kvmesh_shared[];
  kvmesh::cuda::run_block<kvmesh::cuda::PrefillRoles, !kvmesh::kGathers>(params, kvmesh_shared);
}
