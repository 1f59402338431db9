#include "kernels/mods/graph.hpp"

#include <fmt/format.h>

#include <array>
#include <bit>

namespace kvmesh {
namespace {

struct OpTraits {
  std::string_view name;
  int arity;
};

/// In the order of ModOp.
constexpr std::array kTraits = std::to_array<OpTraits>(
    {{"score", 0}, {"b", 0},        {"h", 0},      {"q", 0},      {"kv", 0},  {"constant", 0},
     {"load", 1},  {"to_float", 1}, {"to_int", 1}, {"negate", 1}, {"abs", 1}, {"exp", 1},
     {"log", 1},   {"sqrt", 1},     {"tanh", 1},   {"!", 1},      {"+", 2},   {"-", 2},
     {"*", 2},     {"/", 2},        {"%", 2},      {"min", 2},    {"max", 2}, {"<", 2},
     {"<=", 2},    {"==", 2},       {"!=", 2},     {"&&", 2},     {"||", 2},  {"where", 3}});
static_assert(kTraits.size() == static_cast<std::size_t>(ModOp::kWhere) + 1);

const OpTraits& traits(ModOp op) { return kTraits[static_cast<std::size_t>(op)]; }

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
