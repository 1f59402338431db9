#include "kernels/mods/scalar.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kvmesh/expr.hpp"

namespace kvmesh {
namespace {

float as_float(ModBits bits) { return std::bit_cast<float>(bits); }
std::int32_t as_int(ModBits bits) { return static_cast<std::int32_t>(bits); }
ModBits bits_of(float value) { return std::bit_cast<ModBits>(value); }
ModBits bits_of(std::int32_t value) { return static_cast<ModBits>(value); }
ModBits bits_of(bool value) { return value ? 1 : 0; }

ModBits apply_float(ModOp op, float a, float b) {
  switch (op) {
    case ModOp::kToInt:
      return bits_of(to_int(a));
    case ModOp::kNegate:
      return bits_of(-a);
    case ModOp::kAbs:
      return bits_of(std::fabs(a));
    case ModOp::kExp:
      return bits_of(std::exp(a));
    case ModOp::kLog:
      return bits_of(std::log(a));
    case ModOp::kSqrt:
      return bits_of(std::sqrt(a));
    case ModOp::kTanh:
      return bits_of(std::tanh(a));
    case ModOp::kAdd:
      return bits_of(a + b);
    case ModOp::kSubtract:
      return bits_of(a - b);
    case ModOp::kMultiply:
      return bits_of(a * b);
    case ModOp::kDivide:
      return bits_of(a / b);
    case ModOp::kMin:
      return bits_of(b < a ? b : a);
    case ModOp::kMax:
      return bits_of(a < b ? b : a);
    case ModOp::kLess:
      return bits_of(a < b);
    case ModOp::kLessEqual:
      return bits_of(a <= b);
    case ModOp::kEqual:
      return bits_of(a == b);
    case ModOp::kNotEqual:
      return bits_of(a != b);
    default:
      return 0;
  }
}

/// Sums and products wrap, so they are computed on the unsigned bits.
ModBits apply_int(ModOp op, ModBits a_bits, ModBits b_bits) {
  const std::int32_t a = as_int(a_bits);
  const std::int32_t b = as_int(b_bits);
  switch (op) {
    case ModOp::kToFloat:
      return bits_of(static_cast<float>(a));
    case ModOp::kNegate:
      return 0u - a_bits;
    case ModOp::kAbs:
      return a < 0 ? 0u - a_bits : a_bits;
    case ModOp::kAdd:
      return a_bits + b_bits;
    case ModOp::kSubtract:
      return a_bits - b_bits;
    case ModOp::kMultiply:
      return a_bits * b_bits;
    case ModOp::kDivide:
      if (b == -1) return 0u - a_bits;  // the lowest int32 has no positive twin
      return b == 0 ? 0 : bits_of(a / b);
    case ModOp::kModulo:
      return b == 0 || b == -1 ? 0 : bits_of(a % b);
    case ModOp::kMin:
      return bits_of(std::min(a, b));
    case ModOp::kMax:
      return bits_of(std::max(a, b));
    case ModOp::kLess:
      return bits_of(a < b);
    case ModOp::kLessEqual:
      return bits_of(a <= b);
    case ModOp::kEqual:
      return bits_of(a == b);
    case ModOp::kNotEqual:
      return bits_of(a != b);
    default:
      return 0;
  }
}

ModBits apply_bool(ModOp op, bool a, bool b) {
  switch (op) {
    case ModOp::kToFloat:
      return bits_of(a ? 1.0f : 0.0f);
    case ModOp::kToInt:
      return bits_of(a);
    case ModOp::kNot:
      return bits_of(!a);
    case ModOp::kAnd:
      return bits_of(a && b);
    case ModOp::kOr:
      return bits_of(a || b);
    default:
      return 0;
  }
}

}  // namespace

ModBits apply_scalar(ModOp op, ModType operand, const std::array<ModBits, 3>& inputs) {
  if (op == ModOp::kWhere) return inputs[0] != 0 ? inputs[1] : inputs[2];
  switch (operand) {
    case ModType::kFloat32:
      return apply_float(op, as_float(inputs[0]), as_float(inputs[1]));
    case ModType::kInt32:
      return apply_int(op, inputs[0], inputs[1]);
    case ModType::kBool:
      return apply_bool(op, inputs[0] != 0, inputs[1] != 0);
  }
  return 0;
}

ModBits load_scalar(const ModBuffer& buffer, std::int32_t index) {
  const auto i = std::clamp<std::int64_t>(index, 0, buffer.size - 1);
  if (buffer.type == ModType::kBool) {
    return bits_of(static_cast<const std::uint8_t*>(buffer.data)[i] != 0);
  }
  if (buffer.type == ModType::kFloat32) return bits_of(static_cast<const float*>(buffer.data)[i]);
  return bits_of(static_cast<const std::int32_t*>(buffer.data)[i]);
}

ModBits evaluate_node(const ModGraph& graph, const ModNode& node, const ModPoint& point,
                      const ModBits* values) {
  switch (node.op) {
    case ModOp::kScore:
      return bits_of(point.score);
    case ModOp::kBatch:
      return bits_of(point.b);
    case ModOp::kHead:
      return bits_of(point.h);
    case ModOp::kQuery:
      return bits_of(point.q);
    case ModOp::kKey:
      return bits_of(point.kv);
    case ModOp::kConstant:
      return node.payload;
    case ModOp::kLoad:
      return load_scalar(graph.buffers[node.payload], as_int(values[node.inputs[0]]));
    default: {
      std::array<ModBits, 3> inputs{};
      for (std::size_t k = 0; k < 3; ++k) {
        if (node.inputs[k] >= 0) inputs[k] = values[node.inputs[k]];
      }
      return apply_scalar(node.op, graph.operand_type(node), inputs);
    }
  }
}

ModBits evaluate_scalar(const ModGraph& graph, const ModPoint& point) {
  std::array<ModBits, 64> few;
  std::vector<ModBits> many(graph.nodes.size() > few.size() ? graph.nodes.size() : 0);
  ModBits* values = many.empty() ? few.data() : many.data();
  ModBits result = 0;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    result = values[i] = evaluate_node(graph, graph.nodes[i], point, values);
  }
  return result;
}

}  // namespace kvmesh
