// The parameters of the peer gather's kernel, and its launch.
#pragma once

#include <cuda_runtime_api.h>

#include "comm/combine/peer/kernels/peer_window_view.hpp"

namespace kvmesh::cuda {

/// Rows as bytes, whatever their type. Strides count bytes.
struct GatheredRows {
  unsigned char* data;  // [tokens, heads, row_bytes], last dimension contiguous
  std::int64_t token_stride, head_stride;

  constexpr unsigned char* row(std::int64_t token, std::int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

struct PeerGatherParams {
  CombineTarget to;  // of rows to heads: a rank's own rows are those that it sends to all
  PeerCall call;
  GatheredRows mine;  // only read
  GatheredRows all;
  const std::int32_t* planned_tokens;  // null: to.tokens
  int row_bytes;
  Divisor by_own_heads;
  Divisor by_cells;  // cells of a row as words; lines of a row as lines
  int most_blocks;
};

/// On the current device: before the first gather, so that no launch of one has to.
cudaError_t load_peer_gather_kernels();

/// Sends this rank's rows to all ranks, and stores those of all ranks in `all`. Asynchronous on
/// `stream`; returns what the launch returned.
cudaError_t launch_peer_gather(const PeerGatherParams& params, cudaStream_t stream);

}  // namespace kvmesh::cuda
