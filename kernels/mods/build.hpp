// From the expressions that a lambda left to a graph.
#pragma once

#include <memory>
#include <span>

#include "kernels/mods/graph.hpp"
#include "kvmesh/expr.hpp"

namespace kvmesh {

/// The graph that computes `result`: equal nodes are shared, constant ones folded, unused ones left
/// out. @throws InvalidArgument if it is too large to have been meant.
std::shared_ptr<const ModGraph> build_graph(const Expr& result);

/// The graph's result as an expression over other inputs: `inputs` are score, b, h, q and kv.
Expr inline_graph(const ModGraph& graph, std::span<const Expr, 5> inputs);

}  // namespace kvmesh
