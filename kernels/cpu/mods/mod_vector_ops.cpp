#include "core/numbers/highway_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mods/mod_vector_ops.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

// After foreach_target, which includes this file once per target.
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "core/numbers/float_math-inl.hpp"
#include "kernels/cpu/mods/mod_vector_ops.hpp"
#include "kernels/mods/scalar.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, kModLanes>;
using IntTag = hn::RebindToSigned<FloatTag>;
using FloatVec = hn::Vec<FloatTag>;
using IntVec = hn::Vec<IntTag>;

/// The arrays that one operation reads and writes.
struct Tile {
  const std::uint32_t* in[3];
  std::uint32_t* out;
  std::size_t count;
};

template <class Tag>
HWY_INLINE hn::Vec<Tag> load_tile(Tag tag, const std::uint32_t* slot) {
  return hn::LoadU(tag, reinterpret_cast<const hn::TFromD<Tag>*>(slot));
}
template <class Tag>
HWY_INLINE void store_tile(Tag tag, hn::Vec<Tag> value, std::uint32_t* slot) {
  hn::StoreU(value, tag, reinterpret_cast<hn::TFromD<Tag>*>(slot));
}

template <class Tag, class Op>
HWY_INLINE void unary(Tag tag, const Tile& tile, Op op) {
  for (std::size_t i = 0; i < tile.count; i += hn::Lanes(tag)) {
    store_tile(tag, op(load_tile(tag, tile.in[0] + i)), tile.out + i);
  }
}

template <class Tag, class Op>
HWY_INLINE void binary(Tag tag, const Tile& tile, Op op) {
  for (std::size_t i = 0; i < tile.count; i += hn::Lanes(tag)) {
    store_tile(tag, op(load_tile(tag, tile.in[0] + i), load_tile(tag, tile.in[1] + i)),
               tile.out + i);
  }
}

/// `op` returns a mask, stored as all ones or all zeros.
template <class Tag, class Op>
HWY_INLINE void comparison(Tag tag, const Tile& tile, Op op) {
  for (std::size_t i = 0; i < tile.count; i += hn::Lanes(tag)) {
    store_tile(
        tag,
        hn::VecFromMask(tag, op(load_tile(tag, tile.in[0] + i), load_tile(tag, tile.in[1] + i))),
        tile.out + i);
  }
}

/// For |x| > 10 tanh is 1 in float32; Highway's series would overflow there.
HWY_INLINE FloatVec tanh_everywhere(FloatVec x) {
  const FloatTag tag;
  const FloatVec limit = hn::Set(tag, 10.0f);
  const FloatVec inside = hn::Tanh(tag, hn::Max(hn::Neg(limit), hn::Min(x, limit)));
  return hn::IfThenElse(hn::IsNaN(x), x, inside);
}

/// Rounds towards zero and saturates; NaN becomes 0.
HWY_INLINE IntVec to_int_everywhere(FloatVec x) {
  const FloatTag tag;
  const IntTag itag;
  const FloatVec top = hn::Set(tag, 2147483648.0f);
  const FloatVec number = hn::IfThenZeroElse(hn::IsNaN(x), x);
  const auto above = hn::Ge(number, top);
  const auto below = hn::Le(number, hn::Neg(top));
  const FloatVec safe = hn::IfThenZeroElse(hn::Or(above, below), number);
  IntVec result = hn::ConvertTo(itag, safe);
  result = hn::IfThenElse(hn::RebindMask(itag, above),
                          hn::Set(itag, std::numeric_limits<std::int32_t>::max()), result);
  return hn::IfThenElse(hn::RebindMask(itag, below),
                        hn::Set(itag, std::numeric_limits<std::int32_t>::min()), result);
}

void run_float(ModOp op, const Tile& t) {
  const FloatTag d;
  const IntTag di;
  switch (op) {
    case ModOp::kToInt:
      for (std::size_t i = 0; i < t.count; i += hn::Lanes(d)) {
        store_tile(di, to_int_everywhere(load_tile(d, t.in[0] + i)), t.out + i);
      }
      return;
    case ModOp::kNegate:
      return unary(d, t, [](auto a) HWY_ATTR { return hn::Neg(a); });
    case ModOp::kAbs:
      return unary(d, t, [](auto a) HWY_ATTR { return hn::Abs(a); });
    case ModOp::kExp:
      return unary(d, t, [](auto a) HWY_ATTR { return exp_everywhere(FloatTag(), a); });
    case ModOp::kLog:
      return unary(d, t, [](auto a) HWY_ATTR { return log_everywhere(FloatTag(), a); });
    case ModOp::kSqrt:
      return unary(d, t, [](auto a) HWY_ATTR { return hn::Sqrt(a); });
    case ModOp::kTanh:
      return unary(d, t, [](auto a) HWY_ATTR { return tanh_everywhere(a); });
    case ModOp::kAdd:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); });
    case ModOp::kSubtract:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Sub(a, b); });
    case ModOp::kMultiply:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Mul(a, b); });
    case ModOp::kDivide:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Div(a, b); });
    case ModOp::kMin:
      return binary(d, t,
                    [](auto a, auto b) HWY_ATTR { return hn::IfThenElse(hn::Lt(b, a), b, a); });
    case ModOp::kMax:
      return binary(d, t,
                    [](auto a, auto b) HWY_ATTR { return hn::IfThenElse(hn::Lt(a, b), b, a); });
    case ModOp::kLess:
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Lt(a, b); });
    case ModOp::kLessEqual:
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Le(a, b); });
    case ModOp::kEqual:
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Eq(a, b); });
    case ModOp::kNotEqual:  // Highway's Ne differs among targets where a NaN is compared
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Not(hn::Eq(a, b)); });
    default:
      return;
  }
}

/// No instruction set divides integers in vectors. float64 holds every int32, and the integer part
/// of its quotients is exact (|a| < 2^32 and 1/|b| > 2^-32 lie far within 53 bits), so the compiler
/// can vectorise the conversion, the division and the truncation.
HWY_ATTR void divide(const Tile& t, bool modulo) {
  for (std::size_t i = 0; i < t.count; ++i) {
    const auto a = static_cast<std::int32_t>(t.in[0][i]);
    const auto b = static_cast<std::int32_t>(t.in[1][i]);
    const bool plain = b != 0 && b != -1;
    const double exact = static_cast<double>(a) / static_cast<double>(plain ? b : 1);
    const auto truncated = static_cast<std::uint32_t>(static_cast<std::int32_t>(exact));
    const std::uint32_t quotient = plain ? truncated : b == 0 ? 0u : 0u - t.in[0][i];
    t.out[i] = !modulo ? quotient : plain ? t.in[0][i] - quotient * t.in[1][i] : 0u;
  }
}

void run_int(ModOp op, const Tile& t) {
  const IntTag d;
  switch (op) {
    case ModOp::kToFloat:
      for (std::size_t i = 0; i < t.count; i += hn::Lanes(d)) {
        store_tile(FloatTag(), hn::ConvertTo(FloatTag(), load_tile(d, t.in[0] + i)), t.out + i);
      }
      return;
    case ModOp::kNegate:
      return unary(d, t, [](auto a) HWY_ATTR { return hn::Neg(a); });
    case ModOp::kAbs:
      return unary(d, t, [](auto a) HWY_ATTR { return hn::Abs(a); });
    case ModOp::kAdd:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); });
    case ModOp::kSubtract:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Sub(a, b); });
    case ModOp::kMultiply:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Mul(a, b); });
    case ModOp::kDivide:
      return divide(t, false);
    case ModOp::kModulo:
      return divide(t, true);
    case ModOp::kMin:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Min(a, b); });
    case ModOp::kMax:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); });
    case ModOp::kLess:
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Lt(a, b); });
    case ModOp::kLessEqual:
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Not(hn::Lt(b, a)); });
    case ModOp::kEqual:
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Eq(a, b); });
    case ModOp::kNotEqual:
      return comparison(d, t, [](auto a, auto b) HWY_ATTR { return hn::Not(hn::Eq(a, b)); });
    default:
      return;
  }
}

/// A true bool is -1 as an int.
void run_bool(ModOp op, const Tile& t) {
  const IntTag d;
  switch (op) {
    case ModOp::kToFloat:
      for (std::size_t i = 0; i < t.count; i += hn::Lanes(d)) {
        const IntVec number = hn::Neg(load_tile(d, t.in[0] + i));
        store_tile(FloatTag(), hn::ConvertTo(FloatTag(), number), t.out + i);
      }
      return;
    case ModOp::kToInt:
      return unary(d, t, [](auto a) HWY_ATTR { return hn::Neg(a); });
    case ModOp::kNot:
      return unary(d, t, [](auto a) HWY_ATTR { return hn::Not(a); });
    case ModOp::kAnd:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::And(a, b); });
    case ModOp::kOr:
      return binary(d, t, [](auto a, auto b) HWY_ATTR { return hn::Or(a, b); });
    default:
      return;
  }
}

/// Selects bits, whatever the type of the two sides.
void run_where(const Tile& t) {
  const IntTag d;
  for (std::size_t i = 0; i < t.count; i += hn::Lanes(d)) {
    const auto condition = hn::MaskFromVec(load_tile(d, t.in[0] + i));
    store_tile(d, hn::IfThenElse(condition, load_tile(d, t.in[1] + i), load_tile(d, t.in[2] + i)),
               t.out + i);
  }
}

void run_load(const ModBuffer& buffer, const Tile& t) {
  if (buffer.type == ModType::kBool) {
    for (std::size_t i = 0; i < t.count; ++i) {
      t.out[i] = 0u - load_scalar(buffer, static_cast<std::int32_t>(t.in[0][i]));
    }
    return;
  }
  const IntTag d;
  const auto* words = static_cast<const std::int32_t*>(buffer.data);  // floats too: only bits move
  const IntVec last = hn::Set(d, static_cast<std::int32_t>(buffer.size - 1));
  unary(d, t, [&](auto index) HWY_ATTR {
    return hn::GatherIndex(d, words, hn::Min(hn::Max(index, hn::Zero(d)), last));
  });
}

void RunVectorOps(const VectorOp* program, std::size_t ops, std::uint32_t* const* slots,
                  std::size_t count) {
  for (const VectorOp* op = program; op != program + ops; ++op) {
    const Tile tile{{slots[op->in[0]], slots[op->in[1]], slots[op->in[2]]}, slots[op->out], count};
    if (op->op == ModOp::kWhere) {
      run_where(tile);
    } else if (op->op == ModOp::kLoad) {
      run_load(*op->buffer, tile);
    } else if (op->operand == ModType::kFloat32) {
      run_float(op->op, tile);
    } else if (op->operand == ModType::kInt32) {
      run_int(op->op, tile);
    } else {
      run_bool(op->op, tile);
    }
  }
}

void BoolsToBytes(const std::uint32_t* bools, std::uint8_t* bytes, std::size_t count) {
  const IntTag d;
  const hn::Rebind<std::uint8_t, IntTag> bytes_tag;
  const IntVec one = hn::Set(d, 1);
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    const IntVec bit = hn::And(load_tile(d, bools + i), one);
    hn::StoreU(hn::DemoteTo(bytes_tag, bit), bytes_tag, bytes + i);
  }
}

}  // namespace
}  // namespace kvmesh::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmesh {

HWY_EXPORT(RunVectorOps);
HWY_EXPORT(BoolsToBytes);

void run_vector_ops(std::span<const VectorOp> program, std::uint32_t* const* slots,
                    std::size_t count) {
  HWY_DYNAMIC_DISPATCH(RunVectorOps)(program.data(), program.size(), slots, count);
}

void bools_to_bytes(const std::uint32_t* bools, std::uint8_t* bytes, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(BoolsToBytes)(bools, bytes, count);
}

}  // namespace kvmesh
#endif
