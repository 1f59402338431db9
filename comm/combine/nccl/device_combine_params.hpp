// From a plan and tensors to what the combine's kernels get.
#pragma once

#include "comm/combine/nccl/combine_params.hpp"
#include "comm/combine/nccl/planned_rows.hpp"

namespace kvmesh {

/// Whether kAllReduce takes the LSEs' maximum from NCCL. With a mask it cannot: rows that take no
/// part may hold anything.
bool reduces_maxima(const DeviceCombinePlan& plan);

/// REQUIRES: tensors that check_combine has let pass.
cuda::CombineParams device_params(const DeviceCombinePlan& plan, const DeviceCombineMemory& memory,
                                  const Partial& mine, const CombineOutput& output);

}  // namespace kvmesh
