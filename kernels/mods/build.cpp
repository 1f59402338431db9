#include "kernels/mods/build.hpp"

#include <map>
#include <tuple>
#include <unordered_map>

#include "core/check.hpp"
#include "kernels/mods/expr_node.hpp"
#include "kernels/mods/scalar.hpp"

namespace kvmesh {
namespace {

ModDepends own_dependence(ModOp op) {
  switch (op) {
    case ModOp::kScore:
      return kDependsScore;
    case ModOp::kBatch:
      return kDependsBatch;
    case ModOp::kHead:
      return kDependsHead;
    case ModOp::kQuery:
      return kDependsQuery;
    case ModOp::kKey:
      return kDependsKey;
    default:
      return 0;
  }
}

/// Adds nodes bottom-up. Two nodes are the same if operation, type, inputs and payload are.
class Builder {
 public:
  std::int32_t add(const ExprNode& source) {
    if (const auto seen = by_source_.find(&source); seen != by_source_.end()) return seen->second;
    ModNode node{source.op, source.type, own_dependence(source.op)};
    for (std::size_t k = 0; k < 3 && source.inputs[k]; ++k) {
      node.inputs[k] = add(*source.inputs[k]);
      node.depends |= at(node.inputs[k]).depends;
    }
    node.payload = source.op == ModOp::kLoad ? add_buffer(source.buffer) : source.bits;
    const std::int32_t index = intern(fold(node));
    by_source_.emplace(&source, index);
    return index;
  }

  ModGraph graph;

 private:
  using Key = std::tuple<ModOp, ModType, std::array<std::int32_t, 3>, std::uint32_t>;

  const ModNode& at(std::int32_t index) const {
    return graph.nodes[static_cast<std::size_t>(index)];
  }

  /// Folds operations on constants. Loads are not folded: buffers change between steps.
  ModNode fold(const ModNode& node) const {
    if (arity(node.op) == 0 || node.op == ModOp::kLoad) return node;
    std::array<ModBits, 3> inputs{};
    for (std::size_t k = 0; k < 3 && node.inputs[k] >= 0; ++k) {
      if (at(node.inputs[k]).op != ModOp::kConstant) return node;
      inputs[k] = at(node.inputs[k]).payload;
    }
    ModNode constant{ModOp::kConstant, node.type};
    constant.payload = apply_scalar(node.op, graph.operand_type(node), inputs);
    return constant;
  }

  std::int32_t intern(const ModNode& node) {
    const Key key{node.op, node.type, node.inputs, node.payload};
    const auto next = static_cast<std::int32_t>(graph.nodes.size());
    const auto [entry, is_new] = by_value_.emplace(key, next);
    if (!is_new) return entry->second;
    require(graph.nodes.size() < kMaxNodes, "a mod has more than {} operations", kMaxNodes);
    graph.nodes.push_back(node);
    return next;
  }

  std::uint32_t add_buffer(const ModBuffer& buffer) {
    for (std::size_t i = 0; i < graph.buffers.size(); ++i) {
      const ModBuffer& other = graph.buffers[i];
      if (other.data == buffer.data && other.size == buffer.size && other.type == buffer.type) {
        return static_cast<std::uint32_t>(i);
      }
    }
    graph.buffers.push_back(buffer);
    return static_cast<std::uint32_t>(graph.buffers.size() - 1);
  }

  std::unordered_map<const ExprNode*, std::int32_t> by_source_;
  std::map<Key, std::int32_t> by_value_;
};

/// Removes operands that nothing uses after folding. Keeps the nodes that the last one needs, in
/// order.
ModGraph without_unused(const ModGraph& graph, std::int32_t root) {
  std::vector<bool> used(graph.nodes.size());
  used[static_cast<std::size_t>(root)] = true;
  for (std::size_t i = graph.nodes.size(); i-- > 0;) {
    if (!used[i]) continue;
    for (std::int32_t input : graph.nodes[i].inputs) {
      if (input >= 0) used[static_cast<std::size_t>(input)] = true;
    }
  }
  ModGraph kept;
  kept.buffers = graph.buffers;
  std::vector<std::int32_t> moved(graph.nodes.size(), -1);
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (!used[i]) continue;
    ModNode node = graph.nodes[i];
    for (std::int32_t& input : node.inputs) {
      if (input >= 0) input = moved[static_cast<std::size_t>(input)];
    }
    moved[i] = static_cast<std::int32_t>(kept.nodes.size());
    kept.nodes.push_back(node);
  }
  return kept;
}

Expr to_expr(const ModGraph& graph, const ModNode& node, const std::vector<Expr>& made) {
  if (node.op == ModOp::kLoad) {
    return load(graph.buffers[node.payload], made[static_cast<std::size_t>(node.inputs[0])]);
  }
  ExprNode copy{node.op, node.type};
  if (node.op == ModOp::kConstant) copy.bits = node.payload;
  for (std::size_t k = 0; k < 3 && node.inputs[k] >= 0; ++k) {
    copy.inputs[k] = made[static_cast<std::size_t>(node.inputs[k])].node();
  }
  return make_expr(std::move(copy));
}

}  // namespace

std::shared_ptr<const ModGraph> build_graph(const Expr& result) {
  Builder builder;
  const std::int32_t root = builder.add(*result.node());
  // The root may be an earlier node (folded to a shared constant, or equal to a sub-expression).
  // The nodes after it are unused then, so it ends up last all the same.
  return std::make_shared<const ModGraph>(without_unused(builder.graph, root));
}

Expr inline_graph(const ModGraph& graph, std::span<const Expr, 5> inputs) {
  std::vector<Expr> made;
  made.reserve(graph.nodes.size());
  for (const ModNode& node : graph.nodes) {
    if (node.op <= ModOp::kKey) {
      made.push_back(inputs[static_cast<std::size_t>(node.op)]);
    } else {
      made.push_back(to_expr(graph, node, made));
    }
  }
  return made.back();
}

}  // namespace kvmesh
