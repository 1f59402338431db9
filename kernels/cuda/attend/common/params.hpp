// Parameters of the attention kernels. One text for the host and for NVRTC, which needs only
// <cstdint>.
#pragma once

#include <cstdint>

#include "core/pod/combine_target.hpp"
#include "kernels/mods/mod_buffers.hpp"
#include "kernels/page_visit.hpp"
#include "kernels/tile_class.hpp"
#include "kvmesh/dtype.hpp"

namespace kvmesh::cuda {

/// A range of the visits of one row block: what a thread block computes at a time. Row r is token
/// first_token + r / group (of the launch of shared rows: the token at that place of row_tokens),
/// query head kv_head * group + r % group. Key j of the task lies in visit first_visit + j /
/// page_size at offset j % page_size.
struct alignas(16) DeviceTask {
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t first_token;
  std::int32_t rows;
  std::int32_t first_visit;
  std::int32_t keys;           // keys that were written: a sequence may end inside its last page
  std::int32_t workspace_row;  // of row 0; -1: the block is not split, rows go to the output
  std::int32_t counts_sinks;   // this rank counts the sinks of its rows
};

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
  const DeviceTask* tasks;  // [*task_count], longest blocks first
  const std::int32_t* task_count;
  std::uint32_t* claim;           // 0 before and after each launch: see pieces.cuh
  const PageVisit* visits;        // [visits]
  const TileClass* head_classes;  // [visits][group], of mixed pages; null without any
  const std::int32_t* positions;  // [tokens], logical
  const float* sinks;             // [q_heads]; for kernels that have sinks
  float scale;
  std::int32_t first_head;  // number of this rank's query head 0 in the model
  ModBuffers mods;
  const std::int32_t* row_tokens;  // [shared tokens]; for kernels of shared rows
};

/// The rows of a block that was split, or that shares a prefix. The merge reads them from the
/// workspace: row r of split s lies at workspace_row + s * rows + r. Its rows of the prefix, in
/// splits of a block of more rows, lie at shared_row + s * shared_rows + r.
struct alignas(16) DeviceMerge {
  std::int32_t kv_head;
  std::int32_t first_token;
  std::int32_t rows;
  std::int32_t workspace_row;
  std::int32_t splits;
  std::int32_t counts_sinks;
  std::int32_t shared_row;
  std::int16_t shared_rows;
  std::int16_t shared_splits;  // 0: the block shares nothing
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
