// From a plan and tensors to what the combine's kernels get.
#pragma once

#include "comm/combine/nccl/combine_params.hpp"
#include "comm/combine/nccl/planned_rows.hpp"

namespace kvmesh {

/// Whether kAllReduce takes the LSEs' maximum from NCCL. With a mask it cannot: rows that take no
/// part may hold anything.
bool reduces_maxima(const DeviceCombinePlan& plan);

/// Returns the rows in the messages of a plan as the tensors of a partial on `device`. REQUIRES:
/// the plan is_tensor().
Partial partial_in_messages(const DeviceCombinePlan& plan, float* send_buffer, Device device);

/// REQUIRES: tensors that NcclWay::check_run has let pass, or a partial_in_messages.
cuda::CombineParams device_params(const DeviceCombinePlan& plan, const DeviceCombineMemory& memory,
                                  const Partial& mine, const CombineOutput& output);

}  // namespace kvmesh
