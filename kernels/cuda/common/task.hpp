// The tasks that planning makes and attention computes. One text for the host, nvcc and NVRTC,
// which needs only <cstdint>.
#pragma once

#include <cstdint>

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

/// The tasks of a launch.
struct TaskCounts {
  std::int32_t tasks;
  /// Thread blocks that can start at once, those of the lowest numbers: the first task of each is
  /// that of its number. The others wait for multiprocessors of launches before. All thread blocks
  /// of a first launch are early.
  std::int32_t early_blocks;
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

}  // namespace kvmesh::cuda
