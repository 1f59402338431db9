// The expression graph of a mod, the result of tracing. Every backend runs it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/expr.hpp"

namespace kvmesh {

/// Every backend unrolls the graph; one this long comes from a loop that should be a buffer.
inline constexpr std::size_t kMaxNodes = 1024;

/// Operations. The two operands of a binary one have the same type: conversions are nodes.
enum class ModOp : std::uint8_t {
  kScore,  ///< float32
  kBatch,  ///< int32, as are the next three
  kHead,
  kQuery,
  kKey,
  kConstant,  ///< any type; the bits are the payload
  kLoad,      ///< buffers[payload][clamp(input 0)]
  kToFloat,   ///< from bool or int32
  kToInt,     ///< from bool or float32: towards zero, saturating, NaN -> 0
  kNegate,
  kAbs,
  kExp,
  kLog,
  kSqrt,
  kTanh,
  kNot,
  kAdd,  ///< int32 wraps
  kSubtract,
  kMultiply,
  kDivide,  ///< int32: truncates; x / 0 = 0; the lowest int32 / -1 wraps to itself
  kModulo,  ///< int32 only; x % 0 = 0
  kMin,     ///< b < a ? b : a
  kMax,     ///< a < b ? b : a
  kLess,    ///< bool, as are all below except kWhere
  kLessEqual,
  kEqual,
  kNotEqual,
  kAnd,
  kOr,
  kWhere,  ///< input 0 ? input 1 : input 2
};

std::string_view name(ModOp op);
/// Returns the number of inputs of this operation's nodes.
int arity(ModOp op);

/// The inputs that a value depends on, as bits.
using ModDepends = std::uint8_t;
inline constexpr ModDepends kDependsScore = 1;
inline constexpr ModDepends kDependsBatch = 2;
inline constexpr ModDepends kDependsHead = 4;
inline constexpr ModDepends kDependsQuery = 8;
inline constexpr ModDepends kDependsKey = 16;

struct ModNode {
  ModOp op = ModOp::kConstant;
  ModType type = ModType::kFloat32;
  ModDepends depends = 0;
  std::array<std::int32_t, 3> inputs{-1, -1, -1};  ///< earlier nodes
  std::uint32_t payload = 0;  ///< constant: its bits (a bool is 0 or 1); load: index of the buffer
};

/// Nodes in topological order: each distinct value once, none unused; the last is the result.
/// Immutable and independent of backends.
class ModGraph {
 public:
  std::vector<ModNode> nodes;
  std::vector<ModBuffer> buffers;

  const ModNode& root() const { return nodes.back(); }
  /// True if the result depends on any of these.
  bool depends_on(ModDepends what) const { return (root().depends & what) != 0; }
  /// Returns the type of a node's first operand, which distinguishes an integer comparison from a
  /// float one.
  ModType operand_type(const ModNode& node) const {
    return node.inputs[0] < 0 ? node.type : nodes[static_cast<std::size_t>(node.inputs[0])].type;
  }
};

/// One line per node: "%3 = multiply %1 %2 : float32".
std::string to_string(const ModGraph& graph);

}  // namespace kvmesh
