#include "kernels/mods/interval.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace kvmesh {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kIntMin = std::numeric_limits<std::int32_t>::min();
constexpr double kIntMax = std::numeric_limits<std::int32_t>::max();
/// A buffer's slice is searched for its bounds only up to this length: a pass takes about 100 ns,
/// far less than evaluating a tile of this width.
constexpr std::int64_t kMaxSlice = 1024;

/// All values that a node can take lie in [low, high]. A bool is 0 or 1. float64 holds int32 and
/// float32 exactly. A float that may be NaN has both infinities as bounds and `nan` set.
struct Interval {
  double low = 0;
  double high = 0;
  bool nan = false;
};

constexpr Interval kAnyFloat{-kInfinity, kInfinity, true};
constexpr Interval kAnyInt{kIntMin, kIntMax};
constexpr Interval kAnyBool{0, 1};

Interval exactly(double value) { return std::isnan(value) ? kAnyFloat : Interval{value, value}; }
Interval boolean(bool always, bool never) {
  return always ? Interval{1, 1} : never ? Interval{0, 0} : kAnyBool;
}

Interval anything(ModType type) {
  if (type == ModType::kFloat32) return kAnyFloat;
  return type == ModType::kInt32 ? kAnyInt : kAnyBool;
}

/// The interval of an int32 operation. If a bound leaves int32 the value may have wrapped to any
/// number.
Interval wrapped(double low, double high) {
  return low < kIntMin || high > kIntMax ? kAnyInt : Interval{low, high};
}

/// The interval of a float32 operation. Rounding is monotonic, so rounded bounds bound the rounded
/// values.
Interval rounded(double low, double high) {
  if (std::isnan(low) || std::isnan(high)) return kAnyFloat;
  return {static_cast<float>(low), static_cast<float>(high)};
}

Interval finish(ModType type, double low, double high) {
  return type == ModType::kInt32 ? wrapped(low, high) : rounded(low, high);
}

/// The bounds of an operation that is monotonic in each operand: its values at the corners.
template <class Op>
Interval corners(ModType type, Interval a, Interval b, Op op) {
  const std::array values{op(a.low, b.low), op(a.low, b.high), op(a.high, b.low),
                          op(a.high, b.high)};
  for (double value : values) {
    if (std::isnan(value)) return anything(type);
  }
  const auto [low, high] = std::ranges::minmax(values);
  return finish(type, low, high);
}

Interval divide(ModType type, Interval a, Interval b) {
  if (b.low <= 0 && b.high >= 0) return anything(type);
  if (type == ModType::kFloat32)
    return corners(type, a, b, [](double x, double y) { return x / y; });
  return corners(type, a, b, [](double x, double y) { return std::trunc(x / y); });
}

Interval modulo(Interval a, Interval b) {
  if (a.low == a.high && b.low == b.high && b.low != 0) return exactly(std::fmod(a.low, b.low));
  const double limit = std::max({std::abs(b.low), std::abs(b.high), 1.0}) - 1;
  const double low = a.low >= 0 ? 0 : std::max(-limit, a.low);
  const double high = a.high <= 0 ? 0 : std::min(limit, a.high);
  return {low, high};
}

/// The vector library is off by up to 4 units in the last place, 2^-21 of the value.
Interval about(double low, double high) {
  constexpr double kSlack = 0x1p-21;
  return rounded(low - kSlack * std::abs(low) - 1e-44, high + kSlack * std::abs(high) + 1e-44);
}

Interval apply_float_function(ModOp op, Interval a) {
  switch (op) {
    case ModOp::kExp:
      return about(std::exp(a.low), std::exp(a.high));
    case ModOp::kTanh:
      return about(std::tanh(a.low), std::tanh(a.high));
    case ModOp::kLog:
      return a.low > 0 ? about(std::log(a.low), std::log(a.high)) : kAnyFloat;
    case ModOp::kSqrt:
      return a.low >= 0 ? rounded(std::sqrt(a.low), std::sqrt(a.high)) : kAnyFloat;
    default:
      return kAnyFloat;
  }
}

Interval compare(ModOp op, Interval a, Interval b) {
  switch (op) {
    case ModOp::kLess:
      return boolean(a.high < b.low, a.low >= b.high);
    case ModOp::kLessEqual:
      return boolean(a.high <= b.low, a.low > b.high);
    case ModOp::kEqual:
    case ModOp::kNotEqual: {
      const bool same = a.low == a.high && b.low == b.high && a.low == b.low;
      const bool apart = a.high < b.low || a.low > b.high;
      return op == ModOp::kEqual ? boolean(same, apart) : boolean(apart, same);
    }
    default:
      return kAnyBool;
  }
}

Interval apply_unary(ModOp op, ModType operand, ModType result, Interval a) {
  switch (op) {
    case ModOp::kToFloat:
      return rounded(a.low, a.high);
    case ModOp::kToInt:
      return {std::trunc(std::clamp(a.low, kIntMin, kIntMax)),
              std::trunc(std::clamp(a.high, kIntMin, kIntMax))};
    case ModOp::kNegate:
      return finish(operand, -a.high, -a.low);
    case ModOp::kAbs: {
      const double far = std::max(std::abs(a.low), std::abs(a.high));
      const bool crosses = a.low <= 0 && a.high >= 0;
      return finish(operand, crosses ? 0 : std::min(std::abs(a.low), std::abs(a.high)), far);
    }
    case ModOp::kNot:
      return {1 - a.high, 1 - a.low};
    default:
      return result == ModType::kFloat32 ? apply_float_function(op, a) : anything(result);
  }
}

/// inf - inf and 0 * inf are NaN, and need not be at a corner.
bool may_make_nan(ModOp op, Interval a, Interval b) {
  if (op != ModOp::kAdd && op != ModOp::kSubtract && op != ModOp::kMultiply) return false;
  return !std::isfinite(a.low) || !std::isfinite(a.high) || !std::isfinite(b.low) ||
         !std::isfinite(b.high);
}

Interval apply_binary(ModOp op, ModType operand, Interval a, Interval b) {
  if (may_make_nan(op, a, b)) return kAnyFloat;
  switch (op) {
    case ModOp::kAdd:
      return finish(operand, a.low + b.low, a.high + b.high);
    case ModOp::kSubtract:
      return finish(operand, a.low - b.high, a.high - b.low);
    case ModOp::kMultiply:
      return corners(operand, a, b, [](double x, double y) { return x * y; });
    case ModOp::kDivide:
      return divide(operand, a, b);
    case ModOp::kModulo:
      return modulo(a, b);
    case ModOp::kMin:
      return {std::min(a.low, b.low), std::min(a.high, b.high)};
    case ModOp::kMax:
      return {std::max(a.low, b.low), std::max(a.high, b.high)};
    case ModOp::kAnd:
      return {std::min(a.low, b.low), std::min(a.high, b.high)};
    case ModOp::kOr:
      return {std::max(a.low, b.low), std::max(a.high, b.high)};
    default:
      return compare(op, a, b);
  }
}

template <class T>
Interval slice_bounds(const void* data, std::int64_t first, std::int64_t last) {
  const T* values = static_cast<const T*>(data);
  T low = values[first];
  T high = values[first];
  bool nan = false;
  for (std::int64_t i = first; i <= last; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
    nan |= values[i] != values[i];
  }
  if (nan) return kAnyFloat;
  return {static_cast<double>(low), static_cast<double>(high)};
}

Interval load_bounds(const ModBuffer& buffer, Interval index) {
  const auto end = static_cast<double>(buffer.size - 1);
  const auto first = static_cast<std::int64_t>(std::clamp(index.low, 0.0, end));
  const auto last = static_cast<std::int64_t>(std::clamp(index.high, 0.0, end));
  if (last - first >= kMaxSlice) return anything(buffer.type);
  switch (buffer.type) {
    case ModType::kFloat32:
      return slice_bounds<float>(buffer.data, first, last);
    case ModType::kInt32:
      return slice_bounds<std::int32_t>(buffer.data, first, last);
    case ModType::kBool: {
      const Interval bytes = slice_bounds<std::uint8_t>(buffer.data, first, last);
      return {std::min(bytes.low, 1.0), std::min(bytes.high, 1.0)};
    }
  }
  return anything(buffer.type);
}

double constant_value(const ModNode& node) {
  if (node.type == ModType::kFloat32) return std::bit_cast<float>(node.payload);
  return static_cast<std::int32_t>(node.payload);
}

struct Ranges {
  std::int32_t b, h;
  PositionRange q, kv;
};

/// If a side may be NaN, a comparison may be false (or, for !=, true) whatever the bounds are.
Interval apply(const ModGraph& graph, const ModNode& node, std::span<const Interval> values) {
  const Interval a = values[static_cast<std::size_t>(node.inputs[0])];
  const ModType operand = graph.operand_type(node);
  if (node.inputs[1] < 0) {
    if (a.nan && node.op == ModOp::kToInt) return kAnyInt;
    return a.nan ? anything(node.type) : apply_unary(node.op, operand, node.type, a);
  }
  const Interval b = values[static_cast<std::size_t>(node.inputs[1])];
  if (node.op != ModOp::kWhere) {
    return a.nan || b.nan ? anything(node.type) : apply_binary(node.op, operand, a, b);
  }
  const Interval c = values[static_cast<std::size_t>(node.inputs[2])];
  if (a.low == a.high) return a.low != 0 ? b : c;
  return {std::min(b.low, c.low), std::max(b.high, c.high), b.nan || c.nan};
}

Interval evaluate(const ModGraph& graph, const ModNode& node, const Ranges& ranges,
                  std::span<const Interval> values) {
  switch (node.op) {
    case ModOp::kScore:
      return kAnyFloat;
    case ModOp::kBatch:
      return exactly(ranges.b);
    case ModOp::kHead:
      return exactly(ranges.h);
    case ModOp::kQuery:
      return {static_cast<double>(ranges.q.begin), static_cast<double>(ranges.q.end) - 1};
    case ModOp::kKey:
      return {static_cast<double>(ranges.kv.begin), static_cast<double>(ranges.kv.end) - 1};
    case ModOp::kConstant:
      return exactly(constant_value(node));
    case ModOp::kLoad:
      return load_bounds(graph.buffers[node.payload],
                         values[static_cast<std::size_t>(node.inputs[0])]);
    default:
      return apply(graph, node, values);
  }
}

}  // namespace

std::optional<bool> proved_value(const ModGraph& mask, std::int32_t b, std::int32_t h,
                                 PositionRange q, PositionRange kv) {
  std::array<Interval, 64> few;
  std::vector<Interval> many(mask.nodes.size() > few.size() ? mask.nodes.size() : 0);
  const std::span<Interval> values = many.empty() ? std::span<Interval>(few) : many;
  const Ranges ranges{b, h, q, kv};
  for (std::size_t i = 0; i < mask.nodes.size(); ++i) {
    values[i] = evaluate(mask, mask.nodes[i], ranges, values);
  }
  const Interval result = values[mask.nodes.size() - 1];
  if (result.high == 0) return false;
  if (result.low == 1) return true;
  return std::nullopt;
}

}  // namespace kvmesh
