#include "kernels/mods/emit_cuda.hpp"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <optional>
#include <string_view>

#include "core/check.hpp"

namespace kvmesh {
namespace {

std::string_view cuda_type(ModType type) {
  switch (type) {
    case ModType::kBool:
      return "bool";
    case ModType::kInt32:
      return "int";
    case ModType::kFloat32:
      return "float";
  }
  return {};
}

/// The names in mod_ops.cuh of operations that are functions there; overloads distinguish the
/// types.
std::string_view function_name(ModOp op) {
  switch (op) {
    case ModOp::kToFloat:
      return "to_float";
    case ModOp::kToInt:
      return "to_int";
    case ModOp::kNegate:
      return "negate";
    case ModOp::kAbs:
      return "abs";
    case ModOp::kExp:
      return "exponential";
    case ModOp::kLog:
      return "logarithm";
    case ModOp::kSqrt:
      return "square_root";
    case ModOp::kTanh:
      return "hyperbolic_tangent";
    case ModOp::kAdd:
      return "add";
    case ModOp::kSubtract:
      return "subtract";
    case ModOp::kMultiply:
      return "multiply";
    case ModOp::kDivide:
      return "divide";
    case ModOp::kModulo:
      return "modulo";
    case ModOp::kMin:
      return "min";
    case ModOp::kMax:
      return "max";
    default:
      return {};
  }
}

float float_of(const ModNode& constant) { return std::bit_cast<float>(constant.payload); }

/// A literal of exactly these bits; a float's value follows in a comment, for readers.
std::string constant(const ModNode& node) {
  switch (node.type) {
    case ModType::kBool:
      return node.payload != 0 ? "true" : "false";
    case ModType::kInt32:
      return fmt::format("int({}ll)", static_cast<std::int32_t>(node.payload));
    case ModType::kFloat32:
      return fmt::format("__uint_as_float({:#010x}u) /* {} */", node.payload, float_of(node));
  }
  return {};
}

/// Returns whether the node is a constant as `Math` of mod_ops.cuh takes it.
bool is_constant_of_math(const ModNode& node) {
  if (node.op != ModOp::kConstant || node.type != ModType::kFloat32) return false;
  return float_of(node) >= 1.0f && float_of(node) <= 0x1p24f;
}

/// The nodes of factor * tanh(capped / divisor).
struct SoftCap {
  std::int32_t capped, divisor, factor;
};

/// The numbers of a soft cap.
struct CapNumbers {
  float divisor = 0.0f;
  float factor = 0.0f;
};

/// Prints the body of a mod's function: a local variable for each node that the printed expressions
/// read, in the graph's order.
class Body {
 public:
  Body(const ModGraph& graph, std::size_t first_buffer)
      : graph_(graph), first_buffer_(first_buffer), is_read_(graph.nodes.size()) {
    const int root = static_cast<int>(graph.nodes.size()) - 1;
    text_ = fmt::format("  return {};\n", local(root));
    // Nodes come after their inputs.
    for (int i = root; i >= 0; --i) {
      if (!is_read_[static_cast<std::size_t>(i)]) continue;
      text_ = fmt::format("  const {} v{} = {};\n", cuda_type(at(i).type), i, expression(at(i))) +
              text_;
    }
  }

  const std::string& text() const { return text_; }

  /// Returns the soft cap that alone reads the score, or zeros.
  CapNumbers cap_of_score() const {
    std::optional<SoftCap> only;
    for (std::size_t i = 0; i < is_read_.size(); ++i) {
      if (!is_read_[i]) continue;
      if (graph_.nodes[i].op == ModOp::kScore) return {};
      const std::optional<SoftCap> cap = soft_cap(graph_.nodes[i]);
      if (!cap || !is_of_score(*cap)) continue;
      if (only) return {};
      only = cap;
    }
    if (!only) return {};
    return {float_of(at(only->divisor)), float_of(at(only->factor))};
  }

 private:
  const ModNode& at(std::int32_t i) const { return graph_.nodes[static_cast<std::size_t>(i)]; }
  const ModNode& input(const ModNode& node, std::size_t i) const { return at(node.inputs[i]); }

  /// The variable of a node, which is then to be printed.
  std::string local(std::int32_t i) {
    is_read_[static_cast<std::size_t>(i)] = true;
    return fmt::format("v{}", i);
  }

  bool is_float(const ModNode& node, ModOp op) const {
    return node.op == op && node.type == ModType::kFloat32;
  }
  bool is_quotient_of_math(const ModNode& node) const {
    return is_float(node, ModOp::kDivide) && is_constant_of_math(input(node, 1));
  }

  /// Returns the node as a soft cap, whose factor may be on either side, if it is one.
  std::optional<SoftCap> soft_cap(const ModNode& node) const {
    if (!is_float(node, ModOp::kMultiply)) return {};
    const std::size_t factor = input(node, 0).op == ModOp::kConstant ? 0 : 1;
    const ModNode& tangent = input(node, 1 - factor);
    if (!is_constant_of_math(input(node, factor)) || tangent.op != ModOp::kTanh) return {};
    const ModNode& quotient = input(tangent, 0);
    if (!is_quotient_of_math(quotient)) return {};
    return SoftCap{quotient.inputs[0], quotient.inputs[1], node.inputs[factor]};
  }
  bool is_of_score(const SoftCap& cap) const { return at(cap.capped).op == ModOp::kScore; }

  std::string load(const ModNode& node) {
    const ModType stored = graph_.buffers[node.payload].type;
    return fmt::format("mod_ops::load_{}(buffers.views[{}], {})", cuda_type(stored),
                       first_buffer_ + node.payload, local(node.inputs[0]));
  }

  std::string product(const ModNode& node) {
    const std::optional<SoftCap> cap = soft_cap(node);
    if (!cap) return call(node);
    return fmt::format("Math::soft_cap({}, {}, {})",
                       is_of_score(*cap) ? "score" : local(cap->capped), local(cap->divisor),
                       local(cap->factor));
  }

  /// Returns a sum: Math::product_sum if a summand is a product of floats.
  std::string sum(const ModNode& node) {
    for (std::size_t i = 0; i < 2; ++i) {
      const ModNode& product = input(node, i);
      if (!is_float(product, ModOp::kMultiply) || soft_cap(product)) continue;
      return fmt::format("Math::product_sum({}, {}, {})", local(product.inputs[0]),
                         local(product.inputs[1]), local(node.inputs[1 - i]));
    }
    return call(node);
  }

  std::string to_float(const ModNode& node) {
    const ModNode& distance = input(node, 0);
    const bool is_distance = distance.op == ModOp::kSubtract &&
                             input(distance, 0).op == ModOp::kKey &&
                             input(distance, 1).op == ModOp::kQuery;
    return is_distance ? "Math::distance(kv, q)" : call(node);
  }

  std::string call(const ModNode& node) {
    const std::string first = local(node.inputs[0]);
    return arity(node.op) == 1 ? fmt::format("mod_ops::{}({})", function_name(node.op), first)
                               : fmt::format("mod_ops::{}({}, {})", function_name(node.op), first,
                                             local(node.inputs[1]));
  }

  /// Returns the expression that computes a node from those before it.
  std::string expression(const ModNode& node) {
    const auto& in = node.inputs;
    switch (node.op) {
      case ModOp::kScore:
      case ModOp::kBatch:
      case ModOp::kHead:
      case ModOp::kQuery:
      case ModOp::kKey:
        return std::string(name(node.op));
      case ModOp::kConstant:
        return constant(node);
      case ModOp::kLoad:
        return load(node);
      case ModOp::kToFloat:
        return to_float(node);
      case ModOp::kNot:
        return fmt::format("!{}", local(in[0]));
      case ModOp::kLess:
      case ModOp::kLessEqual:
      case ModOp::kEqual:
      case ModOp::kNotEqual:
      case ModOp::kAnd:
      case ModOp::kOr:
        return fmt::format("{} {} {}", local(in[0]), name(node.op), local(in[1]));
      case ModOp::kWhere:
        return fmt::format("{} ? {} : {}", local(in[0]), local(in[1]), local(in[2]));
      case ModOp::kDivide:
        if (!is_quotient_of_math(node)) return call(node);
        return fmt::format("Math::quotient({}, {})", local(in[0]), local(in[1]));
      case ModOp::kMultiply:
        return product(node);
      case ModOp::kAdd:
        return is_float(node, ModOp::kAdd) ? sum(node) : call(node);
      default:
        return call(node);
    }
  }

  const ModGraph& graph_;
  const std::size_t first_buffer_;
  std::vector<bool> is_read_;  // nodes that an expression reads
  std::string text_;
};

bool is_identity(const ModGraph& graph) {
  const ModNode& root = graph.root();
  return root.op == ModOp::kScore ||
         (root.op == ModOp::kConstant && root.type == ModType::kBool && root.payload != 0);
}

}  // namespace

CudaMods emit_cuda(const ModGraph& score, const ModGraph& mask) {
  CudaMods mods{.text = {}, .buffers = score.buffers};
  mods.buffers.insert(mods.buffers.end(), mask.buffers.begin(), mask.buffers.end());
  require(mods.buffers.size() <= kMaxModBuffers,
          "the score mod and the mask mod capture {} buffers: a CUDA kernel takes at most {}",
          mods.buffers.size(), kMaxModBuffers);
  const Body score_body(score, 0), mask_body(mask, score.buffers.size());
  const CapNumbers cap = score_body.cap_of_score();
  mods.text = fmt::format(
      "#include \"kernels/mods/mod_ops.cuh\"\n"
      "namespace kvmesh {{\n"
      "inline constexpr bool kHasScoreMod = {};\n"
      "inline constexpr bool kHasMaskMod = {};\n"
      "inline constexpr int kModBuffers = {};\n"
      "inline constexpr float kCapDivisor = {:a}f;\n"
      "inline constexpr float kCapFactor = {:a}f;\n"
      "template <class Math = mod_ops::RoundedMath, class Score = float, class Place = int>\n"
      "__device__ __forceinline__ float kvmesh_score_mod(Score score, int b, int h, int q, Place "
      "kv, "
      "const ModBuffers& buffers) {{\n{}}}\n"
      "template <class Math = mod_ops::RoundedMath>\n"
      "__device__ __forceinline__ bool kvmesh_mask_mod(int b, int h, int q, int kv, "
      "const ModBuffers& buffers) {{\n{}}}\n"
      "}}  // namespace kvmesh\n",
      !is_identity(score), !is_identity(mask), mods.buffers.size(), cap.divisor, cap.factor,
      score_body.text(), mask_body.text());
  return mods;
}

}  // namespace kvmesh
