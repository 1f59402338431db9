// What the kernel of the peer combine gets, and how to launch it.
#pragma once

#include <cuda_runtime_api.h>

#include "comm/peer/peer_window_view.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh::cuda {

/// Strides count elements. n tokens and h heads are this rank's share.
struct PeerParams {
  CombineTarget to;
  PeerWindowView window;

  const float* o;    // [tokens, heads, dim], last dimension contiguous
  const float* lse;  // [tokens, heads], last dimension contiguous
  std::int64_t o_token_stride, o_head_stride, lse_token_stride;

  void* out_o;     // [n, h, dim] of out_dtype, last dimension contiguous
  float* out_lse;  // [n, h], or null
  std::int64_t out_token_stride, out_head_stride, out_lse_token_stride, out_lse_head_stride;
  Dtype out_dtype;

  int own_tokens_begin, own_rows;
  Divisor by_own_heads;
  Divisor by_cells;  // cells of a row as words; lines of a row as lines
  Dtype travels_as;
  int combine;  // runs of this plan before
  int most_blocks;
};

/// On the current device: before the first combine, so that no launch of one has to.
cudaError_t load_peer_kernels();

/// Sends this rank's rows to their owners and merges the rows that it owns. Asynchronous on
/// `stream`; returns what the launch returned.
cudaError_t launch_peer_combine(const PeerParams& params, cudaStream_t stream);

}  // namespace kvmesh::cuda
