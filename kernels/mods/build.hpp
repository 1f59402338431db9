// Builds a graph from the expressions of a traced lambda.
#pragma once

#include <memory>
#include <span>

#include "kernels/mods/graph.hpp"
#include "kvmesh/expr.hpp"

namespace kvmesh {

/// Returns the graph that computes `result`: equal nodes are shared, constant ones folded, unused
/// ones removed. @throws InvalidArgument if the graph has more nodes than the limit.
std::shared_ptr<const ModGraph> build_graph(const Expr& result);

/// Returns the graph's result as an expression over other inputs: `inputs` are score, b, h, q and
/// kv.
Expr inline_graph(const ModGraph& graph, std::span<const Expr, 5> inputs);

}  // namespace kvmesh
