#include "kernels/cpu/mods/mod_evaluator.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace kvmesh {
namespace {

constexpr ModDepends kWide = kDependsScore | kDependsKey;

bool is_wide(const ModNode& node) { return (node.depends & kWide) != 0; }

/// Vector operations store true as all ones.
std::uint32_t lane_bits(const ModNode& node, ModBits value) {
  return node.type == ModType::kBool ? 0u - value : value;
}

}  // namespace

ModEvaluator::ModEvaluator(const ModGraph& graph)
    : graph_(&graph),
      wide_root_(is_wide(graph.root())),
      values_(graph.nodes.size()),
      slots_(graph.nodes.size()) {
  const std::size_t tiles = graph.nodes.size() + 2;
  memory_ = hwy::AllocateAligned<std::uint32_t>(tiles * kModTile);
  std::fill_n(memory_.get(), tiles * kModTile, 0u);
  for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i] = memory_.get() + i * kModTile;
  padded_scores_ = memory_.get() + slots_.size() * kModTile;
  padded_kv_ = padded_scores_ + kModTile;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) plan_node(static_cast<std::int32_t>(i));
}

void ModEvaluator::plan_node(std::int32_t index) {
  const ModNode& node = graph_->nodes[static_cast<std::size_t>(index)];
  if (!is_wide(node)) {
    if (node.op == ModOp::kConstant) {
      values_[static_cast<std::size_t>(index)] = node.payload;
      std::fill_n(slots_[static_cast<std::size_t>(index)], kModTile, lane_bits(node, node.payload));
    } else {
      uniform_.push_back(index);
    }
    return;
  }
  // An input's slot is the caller's array.
  if (node.op == ModOp::kScore) score_slot_ = index;
  if (node.op == ModOp::kKey) kv_slot_ = index;
  if (arity(node.op) == 0) return;
  VectorOp op{node.op, graph_->operand_type(node)};
  op.out = index;
  if (node.op == ModOp::kLoad) op.buffer = &graph_->buffers[node.payload];
  for (std::size_t k = 0; k < 3 && node.inputs[k] >= 0; ++k) {
    const std::int32_t input = node.inputs[k];
    op.in[k] = input;
    const ModNode& source = graph_->nodes[static_cast<std::size_t>(input)];
    const bool listed = std::ranges::find(broadcast_, input) != broadcast_.end();
    if (!is_wide(source) && source.op != ModOp::kConstant && !listed) broadcast_.push_back(input);
  }
  program_.push_back(op);
}

void ModEvaluator::compute_uniform(const ModPoint& point) {
  for (std::int32_t index : uniform_) {
    const auto i = static_cast<std::size_t>(index);
    values_[i] = evaluate_node(*graph_, graph_->nodes[i], point, values_.data());
  }
  for (std::int32_t index : broadcast_) {
    const auto i = static_cast<std::size_t>(index);
    std::fill_n(slots_[i], kModTile, lane_bits(graph_->nodes[i], values_[i]));
  }
}

/// Leaves the result in the root's slot. Copies a tile that is not a whole number of vectors, so
/// that no lane past the caller's arrays is touched; the results of the padding are not returned.
void ModEvaluator::run(float* scores, const std::int32_t* kv, int count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(std::uint32_t);
  const int padded = (count + kModLanes - 1) / kModLanes * kModLanes;
  auto* score_tile = reinterpret_cast<std::uint32_t*>(scores);
  // Read only: an input's slot is no operation's output.
  auto* kv_tile = reinterpret_cast<std::uint32_t*>(const_cast<std::int32_t*>(kv));
  if (padded != count) {
    if (scores != nullptr) std::memcpy(padded_scores_, scores, bytes);
    if (kv_slot_ >= 0) std::memcpy(padded_kv_, kv, bytes);
    score_tile = padded_scores_;
    kv_tile = padded_kv_;
  }
  if (score_slot_ >= 0) slots_[static_cast<std::size_t>(score_slot_)] = score_tile;
  if (kv_slot_ >= 0) slots_[static_cast<std::size_t>(kv_slot_)] = kv_tile;
  run_vector_ops(program_, slots_.data(), static_cast<std::size_t>(padded));
}

void ModEvaluator::score(float* scores, const std::int32_t* kv, int count, std::int32_t b,
                         std::int32_t h, std::int32_t q) {
  if (graph_->root().op == ModOp::kScore) return;
  compute_uniform({.b = b, .h = h, .q = q});
  if (!wide_root_) {
    std::fill_n(scores, count, std::bit_cast<float>(values_.back()));
    return;
  }
  for (int done = 0; done < count; done += kModTile) {
    const int tile = std::min(count - done, kModTile);
    run(scores + done, kv + done, tile);
    std::memcpy(scores + done, slots_.back(), static_cast<std::size_t>(tile) * sizeof(float));
  }
}

void ModEvaluator::mask(std::uint8_t* visible, const std::int32_t* kv, int count, std::int32_t b,
                        std::int32_t h, std::int32_t q) {
  compute_uniform({.b = b, .h = h, .q = q});
  if (!wide_root_) {
    std::memset(visible, static_cast<int>(values_.back()), static_cast<std::size_t>(count));
    return;
  }
  std::array<std::uint8_t, kModTile> bytes;
  for (int done = 0; done < count; done += kModTile) {
    const int tile = std::min(count - done, kModTile);
    run(nullptr, kv + done, tile);
    bools_to_bytes(slots_.back(), bytes.data(), kModTile);
    std::memcpy(visible + done, bytes.data(), static_cast<std::size_t>(tile));
  }
}

}  // namespace kvmesh
