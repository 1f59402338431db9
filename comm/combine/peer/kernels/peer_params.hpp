// The parameters of the peer combine's kernel, and its launch.
#pragma once

#include <cuda_runtime_api.h>

#include "comm/combine/combine_tensors.hpp"
#include "comm/combine/peer/kernels/peer_window_view.hpp"

namespace kvmesh::cuda {

struct PeerParams {
  CombineTarget to;
  PeerCall call;
  CombineTensors tensors;

  int own_tokens_begin, own_rows;
  Divisor by_own_heads;
  Divisor by_cells;    // cells of a row as words; lines of a row as lines
  bool rows_are_sent;  // by the kernels before this one
  int most_blocks;
};

/// On the current device: before the first combine, so that no launch of one has to.
cudaError_t load_peer_kernels();

/// Sends this rank's rows to their owners, unless they are sent, and merges the rows that it owns.
/// Asynchronous on `stream`; returns what the launch returned. REQUIRES: where rows are sent, the
/// kernel before on the stream lets the next one start only after it has waited for its
/// predecessor.
cudaError_t launch_peer_combine(const PeerParams& params, cudaStream_t stream);

}  // namespace kvmesh::cuda
