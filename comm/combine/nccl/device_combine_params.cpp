#include "comm/combine/nccl/device_combine_params.hpp"

#include <algorithm>
#include <span>

namespace kvmesh {

std::vector<std::byte> device_table(const DeviceCombinePlan& plan) {
  std::vector<std::byte> table;
  const auto append = [&](const auto& values) {
    const auto bytes = std::as_bytes(std::span(values));
    table.insert(table.end(), bytes.begin(), bytes.end());
  };
  append(plan.sent);
  append(plan.received);
  append(plan.token_places);
  append(plan.owners);
  return table;
}

bool reduces_maxima(const DeviceCombinePlan& plan) {
  return plan.strategy == CombineStrategy::kAllReduce && plan.token_places.empty();
}

cuda::CombineParams device_params(const DeviceCombinePlan& plan, const DeviceCombineMemory& memory,
                                  const Partial& mine, const CombineOutput& output) {
  const auto ranks = static_cast<std::size_t>(plan.ranks);
  auto* messages = static_cast<const RowMessage*>(memory.table);
  const auto* places = reinterpret_cast<const std::int32_t*>(messages + 2 * ranks);
  cuda::CombineParams params{
      .tensors = cuda::combine_tensors(mine, output),
      .rank = plan.rank,
      .ranks = plan.ranks,
      .tokens = static_cast<int>(plan.shape.tokens),
      .heads = static_cast<int>(plan.shape.heads),
      .dim = static_cast<int>(plan.shape.dim),
      .divides_tokens = plan.scatter == Scatter::kTokens,
      .divides_heads = plan.scatter == Scatter::kHeads,
      .token_places = plan.token_places.empty() ? nullptr : places,
      .owners = plan.owners.empty() ? nullptr : places + plan.token_places.size(),
      .sent = messages,
      .received = messages + ranks,
      .few_sent = {},
      .few_received = {},
      .send_buffer = memory.send_buffer,
      .receive_buffer = memory.receive_buffer,
      .lses = memory.lses,
      .lses_are_maxima = reduces_maxima(plan),
      .has_weights = plan.strategy == CombineStrategy::kAllReduce,
      .block_rows = static_cast<int>(plan.block_rows),
      .blocks = plan.blocks,
  };
  if (plan.ranks <= cuda::kMessagesInParams) {
    std::copy(plan.sent.begin(), plan.sent.end(), params.few_sent);
    std::copy(plan.received.begin(), plan.received.end(), params.few_received);
  }
  return params;
}

}  // namespace kvmesh
