// The node behind an Expr: one operation and its operands.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "kernels/mods/graph.hpp"
#include "kvmesh/expr.hpp"

namespace kvmesh {

struct ExprNode {
  ModOp op;
  ModType type;
  std::array<std::shared_ptr<const ExprNode>, 3> inputs{};
  std::uint32_t bits = 0;  ///< bits of a constant
  ModBuffer buffer{};      ///< buffer of a load
  int depth = 1;           ///< longest chain of operations that ends here
};

/// Sets the depth and wraps the node. @throws InvalidArgument past a depth that only an unrolled
/// loop reaches: traversing (and destroying) an expression recurses, so its depth has a bound.
Expr make_expr(ExprNode node);

}  // namespace kvmesh
