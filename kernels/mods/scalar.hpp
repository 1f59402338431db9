// The definition of every operation on single values, which the backends follow.
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

/// The bits of a value of any type: those of a float or an int, 0 or 1 for a bool.
using ModBits = std::uint32_t;

/// Evaluates one operation that has operands and is not a load. `operand` is the type of input 0.
ModBits apply_scalar(ModOp op, ModType operand, const std::array<ModBits, 3>& inputs);

/// Returns element `index`, clamped.
ModBits load_scalar(const ModBuffer& buffer, std::int32_t index);

/// Returns the node's value. REQUIRES: `values` holds those of its inputs, by node.
ModBits evaluate_node(const ModGraph& graph, const ModNode& node, const ModPoint& point,
                      const ModBits* values);

/// Returns the graph's result. Allocates for graphs of more than 64 nodes.
ModBits evaluate_scalar(const ModGraph& graph, const ModPoint& point);

}  // namespace kvmesh
