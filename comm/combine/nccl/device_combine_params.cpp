#include "comm/combine/nccl/device_combine_params.hpp"

namespace kvmesh {

bool reduces_maxima(const DeviceCombinePlan& plan) {
  return plan.strategy == CombineStrategy::kAllReduce && plan.token_places.empty();
}

cuda::CombineParams device_params(const DeviceCombinePlan& plan, const DeviceCombineMemory& memory,
                                  const Partial& mine, const CombineOutput& output) {
  return {
      .tensors = cuda::combine_tensors(mine, output),
      .places = row_places(plan, memory.table),
      .dim = static_cast<int>(plan.shape.dim),
      .send_buffer = memory.send_buffer,
      .receive_buffer = memory.receive_buffer,
      .lses = memory.lses,
      .lses_are_maxima = reduces_maxima(plan),
      .has_weights = plan.strategy == CombineStrategy::kAllReduce,
      .block_rows = static_cast<int>(plan.block_rows),
      .blocks = plan.blocks,
  };
}

}  // namespace kvmesh
