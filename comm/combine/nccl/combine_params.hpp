// The parameters of the combine's kernels, and their launches.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "comm/combine/combine_tensors.hpp"
#include "core/pod/row_places.hpp"

namespace kvmesh::cuda {

struct CombineParams {
  CombineTensors tensors;
  RowPlaces places;
  int dim;
  int row_floats;  // of a row in a message: O [dim], then the LSE

  float* send_buffer;           // the messages; or [blocks][block_floats], to be reduced
  const float* receive_buffer;  // the messages; or [block_floats], reduced

  // For the reducing strategies.
  const float* lses;  // [ranks][tokens * heads] gathered, or [tokens * heads]: their maximum
  bool lses_are_maxima;
  bool has_weights;  // a block is O [block_rows, dim], then the rows' weights [block_rows]
  int block_rows, blocks;
};

/// On the current device: before the first combine, so that no launch of one has to.
cudaError_t load_combine_kernels();

// All are asynchronous on `stream`; they return what the launch returned.

/// kAllToAll: my rows into the messages to their owners.
cudaError_t launch_pack(const CombineParams& params, cudaStream_t stream);
/// kAllToAll: the messages of the others and my own rows into the output.
cudaError_t launch_merge(const CombineParams& params, cudaStream_t stream);
/// The others: my rows, scaled by their weights, into the blocks to reduce.
cudaError_t launch_rescale(const CombineParams& params, cudaStream_t stream);
/// The others: my reduced block into the output.
cudaError_t launch_finish(const CombineParams& params, cudaStream_t stream);

}  // namespace kvmesh::cuda
