#include "kvmesh/expr.hpp"

#include <bit>

#include "core/check.hpp"
#include "kernels/mods/expr_node.hpp"

namespace kvmesh {
namespace {

constexpr int kMaxDepth = 1024;

thread_local int traces_under_way = 0;

Expr make(ModOp op, ModType type, const Expr& a) { return make_expr({op, type, {a.node()}}); }

Expr make(ModOp op, ModType type, const Expr& a, const Expr& b) {
  return make_expr({op, type, {a.node(), b.node()}});
}

std::shared_ptr<const ExprNode> make_constant(ModType type, std::uint32_t bits) {
  return std::make_shared<const ExprNode>(ExprNode{ModOp::kConstant, type, {}, bits});
}

Expr convert(const Expr& a, ModType type) {
  if (a.type() == type) return a;
  if (type == ModType::kFloat32) return make(ModOp::kToFloat, type, a);
  return make(ModOp::kToInt, type, a);
}

[[noreturn]] void refuse(ModOp op, const Expr& a, const Expr& b, std::string_view needs) {
  throw InvalidArgument(fmt::format("a mod applies {} to {} and {}: it needs {}", name(op),
                                    name(a.type()), name(b.type()), needs));
}

/// Numbers of one type: both become float32 if one is, else int32.
Expr numeric(ModOp op, const Expr& a, const Expr& b) {
  const bool is_float = a.type() == ModType::kFloat32 || b.type() == ModType::kFloat32;
  const ModType type = is_float ? ModType::kFloat32 : ModType::kInt32;
  return make(op, type, convert(a, type), convert(b, type));
}

Expr compare(ModOp op, const Expr& a, const Expr& b) {
  const bool is_float = a.type() == ModType::kFloat32 || b.type() == ModType::kFloat32;
  const ModType type = is_float ? ModType::kFloat32 : ModType::kInt32;
  return make(op, ModType::kBool, convert(a, type), convert(b, type));
}

Expr logical(ModOp op, const Expr& a, const Expr& b) {
  if (a.type() != ModType::kBool || b.type() != ModType::kBool) refuse(op, a, b, "bool and bool");
  return make(op, ModType::kBool, a, b);
}

Expr numeric(ModOp op, const Expr& a) {
  const Expr number = a.type() == ModType::kBool ? convert(a, ModType::kInt32) : a;
  return make(op, number.type(), number);
}

Expr floating(ModOp op, const Expr& a) {
  return make(op, ModType::kFloat32, convert(a, ModType::kFloat32));
}

}  // namespace

Expr make_expr(ExprNode node) {
  for (std::size_t k = 0; k < node.inputs.size() && node.inputs[k]; ++k) {
    node.depth = std::max(node.depth, node.inputs[k]->depth + 1);
  }
  require(node.depth <= kMaxDepth, "a mod chains more than {} operations: use a buffer, not a loop",
          kMaxDepth);
  return Expr(std::make_shared<const ExprNode>(std::move(node)));
}

Expr::Expr(bool value) : node_(make_constant(ModType::kBool, value ? 1 : 0)) {}
Expr::Expr(std::int32_t value)
    : node_(make_constant(ModType::kInt32, static_cast<std::uint32_t>(value))) {}
Expr::Expr(float value)
    : node_(make_constant(ModType::kFloat32, std::bit_cast<std::uint32_t>(value))) {}

std::int32_t Expr::fits_int32(bool fits, std::int64_t value) {
  require(fits, "a mod uses the integer {}: integers in mods are int32", value);
  return static_cast<std::int32_t>(value);
}

ModType Expr::type() const { return node_->type; }

}  // namespace kvmesh

// Friends do not take the visibility of the namespace that the header opens.
namespace KVMESH_API kvmesh {

Expr operator+(const Expr& a, const Expr& b) { return numeric(ModOp::kAdd, a, b); }
Expr operator-(const Expr& a, const Expr& b) { return numeric(ModOp::kSubtract, a, b); }
Expr operator*(const Expr& a, const Expr& b) { return numeric(ModOp::kMultiply, a, b); }
Expr operator/(const Expr& a, const Expr& b) { return numeric(ModOp::kDivide, a, b); }
Expr operator%(const Expr& a, const Expr& b) {
  if (a.type() == ModType::kFloat32 || b.type() == ModType::kFloat32) {
    refuse(ModOp::kModulo, a, b, "integers");
  }
  return numeric(ModOp::kModulo, a, b);
}
Expr operator-(const Expr& a) { return numeric(ModOp::kNegate, a); }

Expr operator<(const Expr& a, const Expr& b) { return compare(ModOp::kLess, a, b); }
Expr operator<=(const Expr& a, const Expr& b) { return compare(ModOp::kLessEqual, a, b); }
Expr operator>(const Expr& a, const Expr& b) { return compare(ModOp::kLess, b, a); }
Expr operator>=(const Expr& a, const Expr& b) { return compare(ModOp::kLessEqual, b, a); }
Expr operator==(const Expr& a, const Expr& b) { return compare(ModOp::kEqual, a, b); }
Expr operator!=(const Expr& a, const Expr& b) { return compare(ModOp::kNotEqual, a, b); }

Expr operator&&(const Expr& a, const Expr& b) { return logical(ModOp::kAnd, a, b); }
Expr operator||(const Expr& a, const Expr& b) { return logical(ModOp::kOr, a, b); }
Expr operator&(const Expr& a, const Expr& b) { return logical(ModOp::kAnd, a, b); }
Expr operator|(const Expr& a, const Expr& b) { return logical(ModOp::kOr, a, b); }
Expr operator!(const Expr& a) {
  require(a.type() == ModType::kBool, "a mod applies ! to {}: it needs bool", name(a.type()));
  return make(ModOp::kNot, ModType::kBool, a);
}

}  // namespace kvmesh

namespace kvmesh {

Expr where(const Expr& condition, const Expr& a, const Expr& b) {
  require(condition.type() == ModType::kBool,
          "a mod applies where to a condition of {}: "
          "it needs bool",
          name(condition.type()));
  const ModType type = std::max(a.type(), b.type());  // ModType is in order of promotion
  return make_expr(
      {ModOp::kWhere, type, {condition.node(), convert(a, type).node(), convert(b, type).node()}});
}

Expr min(const Expr& a, const Expr& b) { return numeric(ModOp::kMin, a, b); }
Expr max(const Expr& a, const Expr& b) { return numeric(ModOp::kMax, a, b); }
Expr abs(const Expr& a) { return numeric(ModOp::kAbs, a); }
Expr exp(const Expr& a) { return floating(ModOp::kExp, a); }
Expr log(const Expr& a) { return floating(ModOp::kLog, a); }
Expr sqrt(const Expr& a) { return floating(ModOp::kSqrt, a); }
Expr tanh(const Expr& a) { return floating(ModOp::kTanh, a); }
Expr to_float(const Expr& a) { return convert(a, ModType::kFloat32); }
Expr to_int(const Expr& a) { return convert(a, ModType::kInt32); }

Expr load(const ModBuffer& buffer, const Expr& index) {
  require(index.type() != ModType::kFloat32,
          "a mod indexes a buffer with float32: it needs int32 (see to_int)");
  ExprNode node{ModOp::kLoad, buffer.type, {convert(index, ModType::kInt32).node()}};
  node.buffer = buffer;
  return make_expr(std::move(node));
}

Tracing::Tracing() { ++traces_under_way; }
Tracing::~Tracing() { --traces_under_way; }

void check_buffer(std::int64_t size, std::int64_t row_length) {
  require(size > 0 && size <= std::numeric_limits<std::int32_t>::max(),
          "a mod's buffer has {} elements: it needs 1 to 2^31 - 1", size);
  require(row_length > 0 && size % row_length == 0,
          "a mod's buffer of {} elements is not a whole number of rows of {}", size, row_length);
}

void check_buffer_index(std::int64_t index, std::int64_t size) {
  require(index >= 0 && index < size, "element {} is outside a mod's buffer of {}", index, size);
}

void check_buffer_read(std::int64_t index) {
  require(traces_under_way == 0,
          "a mod reads element {} of a buffer as a plain number, which later calls of `set` would "
          "not change: index the buffer with Expr({}) or with the mod's arguments",
          index, index);
}

void check_buffer_refill(std::int64_t given, std::int64_t size) {
  require(given == size, "{} values given to a mod's buffer of {}", given, size);
}

}  // namespace kvmesh
