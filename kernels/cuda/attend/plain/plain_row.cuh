// One row of a task by a warp, without tensor cores: 32 keys at a time, one per lane.
//
// Constants of the kernel (namespace kvmesh), beside rows.cuh's: kDimK, kPoolType, kQueryType.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/common/rows.cuh"
#include "kernels/cuda/attend/plain/plain_params.hpp"

namespace kvmesh::cuda {

constexpr int kPoolBytes = info_of(kPoolType).bits / 8;
constexpr int kLaneColumns = (kDimV + 31) / 32;  // columns of the output: lane, lane + 32, ...

/// One row of a task. The values of `KeysAtOnce` keys are on their way at once.
template <int KeysAtOnce>
class PlainRow {
 public:
  /// `q` [kDimK] is this warp's memory in shared memory. Float8 pages need `scales`.
  __device__ PlainRow(const AttendParams& params, const DeviceTask& task, int r, float* q,
                      const DeviceScales* scales = nullptr)
      : p_(params), scales_(scales), task_(task), r_(r), row_(row_of(params, task, r)), q_(q) {}

  __device__ void run() {
    load_query();
    for (int c = 0; c < kLaneColumns; ++c) o_[c] = 0.0f;
    for (int first = 0; first < task_.keys; first += 32) {
      const int key = first + lane();
      const PageVisit visit = p_.visits[task_.first_visit + min(key, task_.keys - 1) / kPageSize];
      const float weight = softmax(key < task_.keys ? score(key_of(visit, key)) : kNoKeys);
      add_values(first, visit.page, weight * value_scale(weight, visit.page, key));
    }
    store();
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ void load_query() {
    __syncwarp();
    const std::int64_t at = row_.token * p_.q_token_stride + row_.head * p_.q_head_stride;
#pragma unroll 4
    for (int d = lane(); d < kDimK; d += 32) q_[d] = load_element<kQueryType>(p_.q, at + d);
    __syncwarp();
  }

  /// Address of a key's row in a pool.
  __device__ const char* place(const DevicePool& pool, int page, int key) const {
    return static_cast<const char*>(pool.data) +
           pool_head(task_) * pool.head_stride * static_cast<std::int64_t>(kPoolBytes) +
           std::uint64_t{static_cast<unsigned>(page)} * pool.page_stride_bytes +
           std::uint64_t{static_cast<unsigned>(key % kPageSize)} * pool.token_stride_bytes;
  }

  /// The factor of a float8 row.
  __device__ float scale_of(const DeviceScale& scale, int page, int key) const {
    if (scale.per_token == nullptr) return scale.number;
    return scale.per_token[page * scale.page_stride + pool_head(task_) * scale.head_stride +
                           key % kPageSize * scale.token_stride];
  }
  /// The factor of a key without weight is not read: it may be NaN.
  __device__ float value_scale(float weight, int page, int key) const {
    if constexpr (kPoolType == Dtype::kFloat8E4M3) {
      return weight == 0.0f ? 1.0f : scale_of(scales_->v, page, key);
    } else {
      return 1.0f;
    }
  }

  __device__ float score(const Key& key) const {
    const char* row = place(p_.k, key.visit.page, key.number);
    float sum = 0.0f;
#pragma unroll 4
    for (int d = 0; d < kDimK; ++d) sum += q_[d] * load_element<kPoolType>(row, d);
    if constexpr (kPoolType == Dtype::kFloat8E4M3) {
      sum *= scale_of(scales_->k, key.visit.page, key.number);
    }
    const float score = modified(p_, task_, row_, key, sum);
    return sees(p_, task_, row_, key) ? score : kNoKeys;
  }

  /// Returns the weight of this lane's key; rescales the row's sum and outputs.
  __device__ float softmax(float score) {
    const float top = fmaxf(max_, warp_max(score));
    // Nothing visible yet: -inf - -inf must not be computed. A NaN is no maximum, but stays one.
    const float shift = merge_shift(top);
    const float keep = expf(max_ - shift);
    const float weight = expf(score - shift);
    for (int c = 0; c < kLaneColumns; ++c) o_[c] *= keep;
    sum_ = sum_ * keep + warp_sum(weight);
    max_ = top;
    return weight;
  }

  /// A key without weight is left out: its value may be NaN. Weights include the values' factors.
  __device__ void add_values(int first, int page, float weight) {
#pragma unroll KeysAtOnce
    for (int j = 0; j < 32; ++j) {
      const float w = __shfl_sync(kAllLanes, weight, j);
      const char* row = place(p_.v, __shfl_sync(kAllLanes, page, j), first + j);
      if (w == 0.0f) continue;
      for (int c = 0; c < kLaneColumns; ++c) {
        const int column = c * 32 + lane();
        if (column < kDimV) o_[c] += w * load_element<kPoolType>(row, column);
      }
    }
  }

  __device__ void store() const {
    const float lse = sum_ == 0.0f ? kNoKeys : merge_shift(max_) + logf(sum_);
    const RowEnd end = row_end(p_, task_, r_, sum_, lse);
    const OutputRow to = output_row(p_, task_, r_);
    for (int c = 0; c < kLaneColumns; ++c) {
      const int column = c * 32 + lane();
      if (column < kDimV) to.put(column, o_[c] * end.factor);
    }
    if (lane() == 0) put_lse(p_, task_, r_, end.lse);
  }

  const AttendParams& p_;
  const DeviceScales* const scales_;
  const DeviceTask& task_;
  const int r_;
  const Row row_;
  float* const q_;
  float o_[kLaneColumns];
  float max_ = kNoKeys;
  float sum_ = 0.0f;
};

/// For kernels that rarely compute a row so: with up to 16 loads of a lane on their way, or those
/// of one key, since more would only take longer to compile.
using RarePlainRow = PlainRow<kLaneColumns <= 4 ? 4 : kLaneColumns <= 8 ? 2 : 1>;

}  // namespace kvmesh::cuda
