// From a plan and tensors to what the combine's kernels get.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/combine/nccl/combine_params.hpp"
#include "comm/combine/nccl/device_combine_plan.hpp"

namespace kvmesh {

/// The addresses of a combine's device memory.
struct DeviceCombineMemory {
  const void* table;            // what `device_table` gives
  float* send_buffer;           // of sent_floats, or reduced_floats
  const float* receive_buffer;  // of received_floats, or reduced_floats / blocks
  const float* lses;            // [ranks][rows], of the reducing strategies
};

/// sent [ranks], received [ranks], token_places [ranks][tokens], owners [tokens].
std::vector<std::byte> device_table(const DeviceCombinePlan& plan);

/// Whether kAllReduce takes the LSEs' maximum from NCCL. With a mask it cannot: rows that take no
/// part may hold anything.
bool reduces_maxima(const DeviceCombinePlan& plan);

/// REQUIRES: tensors that check_combine has let pass.
cuda::CombineParams device_params(const DeviceCombinePlan& plan, const DeviceCombineMemory& memory,
                                  const Partial& mine, const CombineOutput& output);

}  // namespace kvmesh
