// attend_partial of reproducible caches: rows of exact sums, whose bits depend on the keys that a
// row sees alone (core/pod/exact_bins.hpp). Each warp computes one row of a task at a time, into
// the workspace; the merge adds the splits of a row.
//
// The arithmetic of a chunk has a fixed order: scores along the dim, one key per lane; weights
// relative to a power of two that follows from the chunk's own largest score; their sum as a tree
// of lanes; and values in key order. All programs of one cache have the same mods and types, so
// the compiler makes the same arithmetic of them.
#pragma once

#include "kernels/cuda/attend/common/pieces.cuh"
#include "kernels/cuda/attend/exact/exact_row.cuh"
#include "kernels/cuda/attend/plain/plain_row.cuh"

namespace kvmesh::cuda {

constexpr int kExactWarps = 4;
constexpr int kChunkKeys = exact_chunk_keys(kPageSize);  // divides 32
constexpr std::int32_t kNoExponent = -0x7FFF'FFFF;       // of a chunk without a visible key
static_assert(kExactColumns == kLaneColumns);

class ExactTaskRow {
 public:
  /// As PlainReader.
  __device__ ExactTaskRow(const PlainParams& params, const DeviceTask& task, int r, float* q)
      : p_(params.attend), task_(task), r_(r), reader_(p_, task, r, q, &params.scales) {}

  __device__ void run() {
    reader_.load_query();
    for (int first = 0; first < task_.keys; first += 32) {
      const int key = first + static_cast<int>(threadIdx.x % 32);
      const PageVisit visit = reader_.visit_of(key);
      add_keys(first, visit.page, reader_.score(visit, key));
    }
    sums_.store({p_.workspace_o, std::int64_t{task_.workspace_row} + r_});
  }

 private:
  /// A lane's key in its chunk.
  struct Weighed {
    std::int32_t exponent;  // of the chunk
    float weight;           // of the key: times 2^exponent
    float sum;              // of the chunk's weights
  };

  __device__ void add_keys(int first, int page, float score) {
    const Weighed mine = weigh(score);
    const int key = first + static_cast<int>(threadIdx.x % 32);
    const float factor = mine.weight * reader_.value_scale(mine.weight, page, key);
    for (int lane = 0; lane < 32; lane += kChunkKeys) {
      const std::int32_t exponent = __shfl_sync(kAllLanes, mine.exponent, lane);
      if (exponent == kNoExponent) continue;
      add_weight(sums_.head, __shfl_sync(kAllLanes, mine.sum, lane), exponent);
      float o[kLaneColumns] = {};
      reader_.add_values(first + lane, lane, kChunkKeys, page, factor, o);
      sums_.add_outputs(o, exponent);
    }
  }

  /// Weighs the keys of all chunks of the warp at once, and keeps the row's largest score.
  __device__ Weighed weigh(float score) {
    const bool is_bad = score != score || score == -kNoKeys;
    const unsigned bad = __ballot_sync(kAllLanes, is_bad);
    const float top = chunk_max(is_bad ? kNoKeys : score) + 0.0f;  // 0, never -0
    const bool counts = (bad & lanes_of_chunk()) == 0 && top != kNoKeys;
    sums_.head.max =
        bad != 0 ? kSpoilt : exact_max(sums_.head.max, warp_max(counts ? top : kNoKeys));
    if (!counts) return {kNoExponent, 0.0f, 0.0f};
    const float counted = fminf(fmaxf(top, -kLargestScore), kLargestScore);
    if (counted != top && score != kNoKeys) {
      score = fminf(fmaxf(score, -kLargestScore), kLargestScore);
    }
    const float exponent = floorf(__fmul_rn(counted, kExactLog2E));
    const float high = __fmaf_rn(-exponent, kExactLn2High, score);
    const float weight = score == kNoKeys ? 0.0f : expf(__fmaf_rn(-exponent, kExactLn2Low, high));
    return {static_cast<std::int32_t>(exponent), weight, chunk_sum(weight)};
  }

  __device__ static unsigned lanes_of_chunk() {
    const unsigned chunk = kChunkKeys == 32 ? kAllLanes : (1u << kChunkKeys) - 1;
    return chunk << (threadIdx.x % 32 / kChunkKeys * kChunkKeys);
  }
  /// Of the chunks that take part: a chunk's lanes do together, or none.
  __device__ static float chunk_sum(float value) {
    const unsigned lanes = lanes_of_chunk();
    for (int step = kChunkKeys / 2; step > 0; step /= 2) {
      value = __fadd_rn(value, __shfl_xor_sync(lanes, value, step));
    }
    return value;
  }
  __device__ static float chunk_max(float value) {
    for (int step = kChunkKeys / 2; step > 0; step /= 2) {
      value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
    }
    return value;
  }

  const AttendParams& p_;
  const DeviceTask& task_;
  const int r_;
  const PlainReader reader_;
  ExactRowSums sums_;
};

}  // namespace kvmesh::cuda

/// Grid: any size, pieces are claimed. Block: 32 * kExactWarps. REQUIRES: every task has rows in
/// the workspace.
extern "C" __global__ void __launch_bounds__(32 * kvmesh::cuda::kExactWarps, 1)
    kvmesh_attend_exact(const __grid_constant__ kvmesh::cuda::PlainParams params) {
  using namespace kvmesh::cuda;
  __shared__ float queries[kExactWarps][kvmesh::kDimK];
  const int warp = threadIdx.x / 32;
  BlockPieces pieces(params.attend);
  for (int piece = blockIdx.x; piece < pieces.count(); piece = pieces.next()) {
    const DeviceTask task = params.attend.tasks[piece];
    for (int r = warp; r < task.rows; r += kExactWarps) {
      ExactTaskRow(params, task, r, queries[warp]).run();
    }
  }
}
