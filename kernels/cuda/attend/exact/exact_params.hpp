// Parameters of the merges of exact rows. One text for the host and for NVRTC.
#pragma once

#include "core/pod/exact_row.hpp"
#include "core/pod/row_places.hpp"
#include "kernels/cuda/attend/common/params.hpp"

namespace kvmesh::cuda {

/// The messages to the owners of exact rows.
struct ExactMessages {
  float* rows;
  RowPlaces places;  ///< of this rank's rows in them; 0 ranks: there are no messages
};

/// The splits of each row.
struct ExactMergeParams {
  const DeviceMerge* merges;  // [*merge_count], without shared rows
  const std::int32_t* merge_count;
  const char* rows;    // [workspace rows], ExactRows
  ExactMessages to;    // where rows go as they are; none: finished, to `out`
  const float* sinks;  // [q_heads]; null: none
  AttendOutput out;
  std::int32_t group;  // query heads per kv head
};

/// The ranks' parts of each row that this rank owns.
struct ExactCombineParams {
  RowPlaces places;
  const float* mine;      // the messages of this rank, with the rows that it keeps
  const float* received;  // those of the others
  const float* sinks;     // [heads]; null: none
  AttendOutput out;       // of this rank's block
};

/// Warps per thread block of either.
inline constexpr int kExactMergeWarps = 8;
inline constexpr int kExactMergeThreads = 32 * kExactMergeWarps;
/// Thread blocks per multiprocessor: 80 registers per thread, for the loads of four parts at once.
inline constexpr int kExactMergeBlocks = 3;
/// Columns of a row that a warp adds at a time.
inline constexpr int kExactMergeColumns = 64;

}  // namespace kvmesh::cuda
