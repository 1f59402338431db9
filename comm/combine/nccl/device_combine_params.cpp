#include "comm/combine/nccl/device_combine_params.hpp"

namespace kvmesh {

bool reduces_maxima(const DeviceCombinePlan& plan) {
  return plan.strategy == CombineStrategy::kAllReduce && plan.token_places.empty();
}

Partial partial_in_messages(const DeviceCombinePlan& plan, float* send_buffer, Device device) {
  const auto [tokens, heads, dim] = plan.shape;
  const std::int64_t of_token = plan.token_stride(), of_head = plan.head_stride();
  return {
      .o = {send_buffer, Dtype::kFloat32, {tokens, heads, dim}, {of_token, of_head, 1}, device},
      .lse = {send_buffer + dim, Dtype::kFloat32, {tokens, heads}, {of_token, of_head}, device}};
}

cuda::CombineParams device_params(const DeviceCombinePlan& plan, const DeviceCombineMemory& memory,
                                  const Partial& mine, const CombineOutput& output) {
  return {
      .tensors = cuda::combine_tensors(mine, output),
      .places = row_places(plan, memory.table),
      .dim = static_cast<int>(plan.shape.dim),
      .row_floats = static_cast<int>(plan.row_floats),
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
