// Parameters of the merge of exact rows. One text for the host and for NVRTC.
#pragma once

#include "core/pod/exact_row.hpp"
#include "kernels/cuda/attend/common/params.hpp"

namespace kvmesh::cuda {

struct ExactMergeParams {
  const DeviceMerge* merges;  // [*merge_count], without shared rows
  const std::int32_t* merge_count;
  const char* rows;    // [workspace rows], ExactRows
  char* to_rows;       // [tokens, q_heads]: where rows go as they are; null: finished, to `out`
  const float* sinks;  // [q_heads]; null: none
  AttendOutput out;
  std::int32_t q_heads;
  std::int32_t group;  // query heads per kv head
};

/// Warps per thread block of the merge.
inline constexpr int kExactMergeWarps = 8;
/// Columns of a row that a warp adds at a time.
inline constexpr int kExactMergeColumns = 64;

}  // namespace kvmesh::cuda
