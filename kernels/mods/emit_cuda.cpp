#include "kernels/mods/emit_cuda.hpp"

#include <fmt/format.h>

#include <array>
#include <bit>
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

/// The names in mod_ops.cuh of operations that are functions there; overloads tell the types apart.
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

/// A literal of exactly these bits; a float's value follows in a comment, for readers.
std::string constant(const ModNode& node) {
  switch (node.type) {
    case ModType::kBool:
      return node.payload != 0 ? "true" : "false";
    case ModType::kInt32:
      return fmt::format("int({}ll)", static_cast<std::int32_t>(node.payload));
    case ModType::kFloat32:
      return fmt::format("__uint_as_float({:#010x}u) /* {} */", node.payload,
                         std::bit_cast<float>(node.payload));
  }
  return {};
}

std::string load(const ModNode& node, ModType stored, std::size_t first_buffer) {
  return fmt::format("mod_ops::load_{}(buffers.views[{}], v{})", cuda_type(stored),
                     first_buffer + node.payload, node.inputs[0]);
}

const ModNode& input(const ModGraph& graph, const ModNode& node, std::size_t i) {
  return graph.nodes[static_cast<std::size_t>(node.inputs[i])];
}

/// Returns whether the node is a constant as `Math` of mod_ops.cuh takes it.
bool is_constant_of_math(const ModNode& node) {
  if (node.op != ModOp::kConstant || node.type != ModType::kFloat32) return false;
  const auto value = std::bit_cast<float>(node.payload);
  return value >= 1.0f && value <= 0x1p24f;
}

bool is_quotient_of_math(const ModGraph& graph, const ModNode& node) {
  return node.op == ModOp::kDivide && node.type == ModType::kFloat32 &&
         is_constant_of_math(input(graph, node, 1));
}

/// Returns the expression of factor * tanh(a / divisor), or of tanh(a / divisor) * factor; empty
/// for another node.
std::string soft_cap(const ModGraph& graph, const ModNode& node) {
  if (node.op != ModOp::kMultiply || node.type != ModType::kFloat32) return {};
  const std::size_t factor = input(graph, node, 0).op == ModOp::kConstant ? 0 : 1;
  const ModNode& tangent = input(graph, node, 1 - factor);
  if (!is_constant_of_math(input(graph, node, factor)) || tangent.op != ModOp::kTanh) return {};
  const ModNode& quotient = input(graph, tangent, 0);
  if (!is_quotient_of_math(graph, quotient)) return {};
  return fmt::format("Math::soft_cap(v{}, v{}, v{})", quotient.inputs[0], quotient.inputs[1],
                     node.inputs[factor]);
}

std::string call(const ModNode& node) {
  return arity(node.op) == 1
             ? fmt::format("mod_ops::{}(v{})", function_name(node.op), node.inputs[0])
             : fmt::format("mod_ops::{}(v{}, v{})", function_name(node.op), node.inputs[0],
                           node.inputs[1]);
}

/// Returns the expression that computes a node from those before it.
std::string expression(const ModGraph& graph, const ModNode& node, std::size_t first_buffer) {
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
      return load(node, graph.buffers[node.payload].type, first_buffer);
    case ModOp::kNot:
      return fmt::format("!v{}", in[0]);
    case ModOp::kLess:
    case ModOp::kLessEqual:
    case ModOp::kEqual:
    case ModOp::kNotEqual:
    case ModOp::kAnd:
    case ModOp::kOr:
      return fmt::format("v{} {} v{}", in[0], name(node.op), in[1]);
    case ModOp::kWhere:
      return fmt::format("v{} ? v{} : v{}", in[0], in[1], in[2]);
    case ModOp::kDivide:
      if (!is_quotient_of_math(graph, node)) return call(node);
      return fmt::format("Math::quotient(v{}, v{})", in[0], in[1]);
    case ModOp::kMultiply: {
      const std::string cap = soft_cap(graph, node);
      return cap.empty() ? call(node) : cap;
    }
    default:
      return call(node);
  }
}

/// Writes one local variable per node, in the graph's order; the last is the result.
std::string body(const ModGraph& graph, std::size_t first_buffer) {
  std::string text;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const ModNode& node = graph.nodes[i];
    text += fmt::format("  const {} v{} = {};\n", cuda_type(node.type), i,
                        expression(graph, node, first_buffer));
  }
  return text + fmt::format("  return v{};\n", graph.nodes.size() - 1);
}

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
  mods.text = fmt::format(
      "#include \"kernels/mods/mod_ops.cuh\"\n"
      "namespace kvmesh {{\n"
      "inline constexpr bool kHasScoreMod = {};\n"
      "inline constexpr bool kHasMaskMod = {};\n"
      "inline constexpr int kModBuffers = {};\n"
      "template <class Math = mod_ops::RoundedMath>\n"
      "__device__ __forceinline__ float kvmesh_score_mod(float score, int b, int h, int q, int kv, "
      "const ModBuffers& buffers) {{\n{}}}\n"
      "template <class Math = mod_ops::RoundedMath>\n"
      "__device__ __forceinline__ bool kvmesh_mask_mod(int b, int h, int q, int kv, "
      "const ModBuffers& buffers) {{\n{}}}\n"
      "}}  // namespace kvmesh\n",
      !is_identity(score), !is_identity(mask), mods.buffers.size(), body(score, 0),
      body(mask, score.buffers.size()));
  return mods;
}

}  // namespace kvmesh
