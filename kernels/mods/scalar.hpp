// The meaning of every operation on single values: the definition that the backends follow.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/mods/graph.hpp"

namespace kvmesh {

/// The inputs of one evaluation.
struct ModPoint {
  float score = 0.0f;
  std::int32_t b = 0;
  std::int32_t h = 0;
  std::int32_t q = 0;
  std::int32_t kv = 0;
};

/// The bits of a value of any type: a float's or an int's own, 0 or 1 for a bool.
using ModBits = std::uint32_t;

/// One operation that has operands and is no load. `operand` is the type of input 0.
ModBits apply_scalar(ModOp op, ModType operand, const std::array<ModBits, 3>& inputs);

/// Element `index`, clamped.
ModBits load_scalar(const ModBuffer& buffer, std::int32_t index);

/// The node's value, where `values` holds those of its inputs, by node.
ModBits evaluate_node(const ModGraph& graph, const ModNode& node, const ModPoint& point,
                      const ModBits* values);

/// The graph's result. Allocates for graphs of more than 64 nodes.
ModBits evaluate_scalar(const ModGraph& graph, const ModPoint& point);

}  // namespace kvmesh
