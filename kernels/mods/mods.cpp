#include "kvmesh/mods.hpp"

#include <array>
#include <bit>

#include "core/check.hpp"
#include "kernels/mods/build.hpp"
#include "kernels/mods/expr_node.hpp"
#include "kernels/mods/scalar.hpp"

namespace kvmesh {
namespace {

Expr input(ModOp op, ModType type = ModType::kInt32) {
  return Expr(std::make_shared<const ExprNode>(ExprNode{op, type}));
}

void require_inputs(ModType score, const std::array<Expr, 4>& positions) {
  require(score == ModType::kFloat32, "a score mod gets {} as the score: it needs float32",
          name(score));
  for (const Expr& position : positions) {
    require(position.type() == ModType::kInt32, "a mod gets {} as b, h, q or kv: it needs int32",
            name(position.type()));
  }
}

}  // namespace

ModInputs symbolic_inputs() {
  return {input(ModOp::kScore, ModType::kFloat32), input(ModOp::kBatch), input(ModOp::kHead),
          input(ModOp::kQuery), input(ModOp::kKey)};
}

std::shared_ptr<const ModGraph> make_score_graph(const Expr& result) {
  require(result.type() != ModType::kBool, "a score mod returns bool: it must return float32");
  return build_graph(to_float(result));
}

std::shared_ptr<const ModGraph> make_mask_graph(const Expr& result) {
  require(result.type() == ModType::kBool, "a mask mod returns {}: it must return bool",
          name(result.type()));
  return build_graph(result);
}

ScoreMod::ScoreMod() : graph_(make_score_graph(symbolic_inputs().score)) {}

bool ScoreMod::is_identity() const { return graph_->root().op == ModOp::kScore; }

std::string ScoreMod::to_string() const { return kvmesh::to_string(*graph_); }

Expr ScoreMod::operator()(const Expr& score, const Expr& b, const Expr& h, const Expr& q,
                          const Expr& kv) const {
  const Expr as_float = to_float(score);
  require_inputs(as_float.type(), {b, h, q, kv});
  return inline_graph(*graph_, std::array{as_float, b, h, q, kv});
}

float ScoreMod::operator()(float score, std::int32_t b, std::int32_t h, std::int32_t q,
                           std::int32_t kv) const {
  return std::bit_cast<float>(evaluate_scalar(*graph_, {score, b, h, q, kv}));
}

MaskMod::MaskMod() : graph_(make_mask_graph(true)) {}

bool MaskMod::is_identity() const {
  return graph_->root().op == ModOp::kConstant && graph_->root().payload != 0;
}

std::string MaskMod::to_string() const { return kvmesh::to_string(*graph_); }

Expr MaskMod::operator()(const Expr& b, const Expr& h, const Expr& q, const Expr& kv) const {
  require_inputs(ModType::kFloat32, {b, h, q, kv});
  return inline_graph(*graph_, std::array{Expr(0.0f), b, h, q, kv});
}

bool MaskMod::operator()(std::int32_t b, std::int32_t h, std::int32_t q, std::int32_t kv) const {
  return evaluate_scalar(*graph_, {0.0f, b, h, q, kv}) != 0;
}

MaskMod operator&&(const MaskMod& a, const MaskMod& b) {
  return [&](auto row, auto h, auto q, auto kv) { return a(row, h, q, kv) && b(row, h, q, kv); };
}
MaskMod operator||(const MaskMod& a, const MaskMod& b) {
  return [&](auto row, auto h, auto q, auto kv) { return a(row, h, q, kv) || b(row, h, q, kv); };
}
MaskMod operator!(const MaskMod& a) {
  return [&](auto row, auto h, auto q, auto kv) { return !a(row, h, q, kv); };
}

}  // namespace kvmesh
