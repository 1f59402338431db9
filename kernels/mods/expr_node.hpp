// What an Expr points to: one operation and its operands.
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
  std::uint32_t bits = 0;  ///< of a constant
  ModBuffer buffer{};      ///< of a load
};

}  // namespace kvmesh
