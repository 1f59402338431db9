// Parameters of the attention kernels. One text for the host and for NVRTC, which needs only
// <cstdint>.
#pragma once

#include <cstdint>

#include "core/pod/combine_target.hpp"
#include "kernels/cuda/common/task.hpp"
#include "kernels/mods/mod_buffers.hpp"
#include "kernels/page_visit.hpp"
#include "kernels/tile_class.hpp"
#include "kvmesh/dtype.hpp"

namespace kvmesh::cuda {

/// Half of a pool: [pages, kv_heads, page_size, dim]. The strides that find a key are in bytes and
/// have 32 bits, so finding it takes one multiplication instead of three.
struct DevicePool {
  const void* data;
  std::int64_t head_stride;  // in elements
  std::uint32_t page_stride_bytes;
  std::uint32_t token_stride_bytes;
};

/// The output tensors.
struct AttendOutput {
  void* o;  // [tokens, q_heads, v_dim]
  Dtype o_type;
  std::int64_t o_token_stride;  // in elements
  std::int64_t o_head_stride;
  float* lse;  // [tokens, q_heads], natural log; null: not written
  std::int64_t lse_token_stride;
  std::int64_t lse_head_stride;
};

struct AttendParams {
  const void* q;  // [tokens, q_heads, k_dim]
  std::int64_t q_token_stride;
  std::int64_t q_head_stride;
  DevicePool k;
  DevicePool v;
  AttendOutput out;
  float* workspace_o;       // [workspace rows, v_dim]
  float* workspace_lse;     // [workspace rows]
  char* workspace_rows;     // [workspace rows], ExactRows; instead of the two for exact sums
  const DeviceTask* tasks;  // [task_counts->tasks], longest blocks first
  const TaskCounts* task_counts;
  std::uint32_t* claim;           // 0 before and after each launch: see pieces.cuh
  const PageVisit* visits;        // [visits]
  const TileClass* head_classes;  // [visits][group], of mixed pages; null without any
  const std::int32_t* positions;  // [tokens], logical
  const float* sinks;             // [q_heads]; for kernels that have sinks
  float scale;
  std::int32_t first_head;  // number of this rank's query head 0 in the model
  ModBuffers mods;
  const std::int32_t* row_tokens;  // [shared tokens]; for kernels of shared rows
  std::int32_t is_first;           // of the launches of one attention: see launch_order.cuh
  std::int32_t is_last;
};

/// Warps per thread block of the merge.
inline constexpr int kMergeWarps = 8;
/// Columns of a row that one warp merges.
inline constexpr int kMergeColumns = 128;

struct MergeParams {
  const DeviceMerge* merges;  // [*merge_count]
  const std::int32_t* merge_count;
  const float* workspace_o;    // [workspace rows, v_dim]
  const float* workspace_lse;  // [workspace rows]
  const float* sinks;          // [q_heads]; null: none
  AttendOutput out;
  CombineTarget to;    // where rows go instead of the output, if it has ranks
  std::int32_t group;  // query heads per kv head
};

}  // namespace kvmesh::cuda
