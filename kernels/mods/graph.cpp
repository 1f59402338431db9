#include "kernels/mods/graph.hpp"

#include <fmt/format.h>

#include <bit>

namespace kvmesh {
namespace {

struct OpTraits {
  std::string_view name;
  int arity;
};

OpTraits traits(ModOp op) {
  switch (op) {
    case ModOp::kScore:
      return {"score", 0};
    case ModOp::kBatch:
      return {"b", 0};
    case ModOp::kHead:
      return {"h", 0};
    case ModOp::kQuery:
      return {"q", 0};
    case ModOp::kKey:
      return {"kv", 0};
    case ModOp::kConstant:
      return {"constant", 0};
    case ModOp::kLoad:
      return {"load", 1};
    case ModOp::kToFloat:
      return {"to_float", 1};
    case ModOp::kToInt:
      return {"to_int", 1};
    case ModOp::kNegate:
      return {"negate", 1};
    case ModOp::kAbs:
      return {"abs", 1};
    case ModOp::kExp:
      return {"exp", 1};
    case ModOp::kLog:
      return {"log", 1};
    case ModOp::kSqrt:
      return {"sqrt", 1};
    case ModOp::kTanh:
      return {"tanh", 1};
    case ModOp::kNot:
      return {"!", 1};
    case ModOp::kAdd:
      return {"+", 2};
    case ModOp::kSubtract:
      return {"-", 2};
    case ModOp::kMultiply:
      return {"*", 2};
    case ModOp::kDivide:
      return {"/", 2};
    case ModOp::kModulo:
      return {"%", 2};
    case ModOp::kMin:
      return {"min", 2};
    case ModOp::kMax:
      return {"max", 2};
    case ModOp::kLess:
      return {"<", 2};
    case ModOp::kLessEqual:
      return {"<=", 2};
    case ModOp::kEqual:
      return {"==", 2};
    case ModOp::kNotEqual:
      return {"!=", 2};
    case ModOp::kAnd:
      return {"&&", 2};
    case ModOp::kOr:
      return {"||", 2};
    case ModOp::kWhere:
      return {"where", 3};
  }
  return {"unknown", 0};
}

std::string constant_text(const ModNode& node) {
  switch (node.type) {
    case ModType::kBool:
      return node.payload != 0 ? "true" : "false";
    case ModType::kInt32:
      return fmt::format("{}", static_cast<std::int32_t>(node.payload));
    case ModType::kFloat32:
      return fmt::format("{}", std::bit_cast<float>(node.payload));
  }
  return {};
}

}  // namespace

std::string_view name(ModOp op) { return traits(op).name; }
int arity(ModOp op) { return traits(op).arity; }

std::string_view name(ModType type) {
  switch (type) {
    case ModType::kBool:
      return "bool";
    case ModType::kInt32:
      return "int32";
    case ModType::kFloat32:
      return "float32";
  }
  return "unknown";
}

std::string to_string(const ModGraph& graph) {
  std::string text;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const ModNode& node = graph.nodes[i];
    text += fmt::format("%{} = {}", i, name(node.op));
    if (node.op == ModOp::kConstant) text += fmt::format(" {}", constant_text(node));
    if (node.op == ModOp::kLoad) text += fmt::format(" buffer{}", node.payload);
    for (int k = 0; k < arity(node.op); ++k) {
      text += fmt::format(" %{}", node.inputs[static_cast<std::size_t>(k)]);
    }
    text += fmt::format(" : {}\n", name(node.type));
  }
  return text;
}

}  // namespace kvmesh
