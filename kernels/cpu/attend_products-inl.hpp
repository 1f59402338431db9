// The register-blocked products of attend_partial, compiled once per instruction set (Highway).
//
//   scores [4 rows, 4 keys]   += q [4 rows, dim] * k [4 keys, dim]      16 accumulators over dim
//   o [4 rows, 4 vectors]     += p [4 rows, keys] * v [keys, 4 vectors]  16 accumulators over keys
//
// Each loaded vector is used four times, so with 16-bit pages and a group of 4 query heads one core
// does about 1 load and 2 multiply-adds per cycle and memory stays the limit.

#if defined(KVMESH_ATTEND_PRODUCTS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMESH_ATTEND_PRODUCTS_INL
#undef KVMESH_ATTEND_PRODUCTS_INL
#else
#define KVMESH_ATTEND_PRODUCTS_INL
#endif

#include <hwy/highway.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "core/numbers/half.hpp"
#include "kernels/cpu/attend_task.hpp"
#include "kernels/cpu/bfloat16_dots.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::cpu::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// 512-bit vectors at most: `padded` promises whole vectors of 16 floats.
using Floats = hn::CappedTag<float, 16>;
using Vector = hn::Vec<Floats>;
constexpr Floats kFloats;

HWY_INLINE Vector load_floats(const float* from) { return hn::LoadU(kFloats, from); }

template <class Half>
HWY_INLINE Vector load_floats(const Half* from) {
  const hn::Rebind<Half, Floats> halves;
  return hn::PromoteTo(kFloats, hn::LoadU(halves, from));
}

// True if rows of T are loaded as they are. Where the hardware does not widen float16, Highway's
// own widening turns NaN and infinity into numbers.
template <class T>
constexpr bool kLoads = true;
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || (HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2)
template <>
constexpr bool kLoads<hwy::float16_t> = false;
#endif

// Float8 rows have scales: they are widened once per tile.
template <>
constexpr bool kLoads<Float8> = false;

// Converts `dim` elements to float32.
template <class T>
HWY_INLINE void widen_row(const T* from, int dim, float* to) {
  constexpr Dtype kType = std::is_same_v<T, float>            ? Dtype::kFloat32
                          : std::is_same_v<T, hwy::float16_t> ? Dtype::kFloat16
                                                              : Dtype::kBFloat16;
  int d = 0;
  if constexpr (kLoads<T>) {
    const auto lanes = static_cast<int>(hn::Lanes(kFloats));
    for (; d + lanes <= dim; d += lanes) hn::StoreU(load_floats(from + d), kFloats, to + d);
  }
  for (; d < dim; ++d) to[d] = load_element(from, kType, d);
}

// As float8_to_float, times the row's scale.
HWY_INLINE void widen_row(const Float8* from, int dim, float scale, float* to) {
  const hn::Rebind<std::uint8_t, Floats> bytes;
  const hn::RebindToUnsigned<Floats> words;
  const Vector factor = hn::Set(kFloats, 0x1p120f), nan = hn::NaN(kFloats);
  const auto lanes = static_cast<int>(hn::Lanes(kFloats));
  int d = 0;
  for (; d + lanes <= dim; d += lanes) {
    const auto bits = hn::PromoteTo(words, hn::LoadU(bytes, &from[d].bits));
    const auto magnitude = hn::And(bits, hn::Set(words, 0x7F));
    const auto sign = hn::ShiftLeft<24>(hn::And(bits, hn::Set(words, 0x80)));
    const Vector size = hn::Mul(hn::BitCast(kFloats, hn::ShiftLeft<20>(magnitude)), factor);
    const auto is_nan = hn::RebindMask(kFloats, hn::Eq(magnitude, hn::Set(words, 0x7F)));
    const Vector value = hn::Or(hn::IfThenElse(is_nan, nan, size), hn::BitCast(kFloats, sign));
    hn::StoreU(hn::Mul(value, hn::Set(kFloats, scale)), kFloats, to + d);
  }
  for (; d < dim; ++d) to[d] = float8_to_float(from[d].bits) * scale;
}

// Rows of the next tile. They are prefetched a few lines at a time between the steps of the current
// tile, so that memory is busy in all of its phases.
template <class T>
struct NextRows {
  const T* const* rows = nullptr;
  int count = 0;

  // Prefetches elements [begin, end) of row `index`, if there is such a row.
  HWY_INLINE void prefetch(int index, std::size_t begin, std::size_t end) const {
    if (index >= count) return;
    for (std::size_t i = begin; i < end; i += 64 / sizeof(T)) {
      __builtin_prefetch(rows[index] + i, 0, kLevel);
    }
  }

 private:
  static constexpr int kLevel = 2;  // the second-level cache: the first holds the current tile
};

// Sums of the lanes of 16 accumulators, in order. Two interleavings turn four accumulators into one
// vector that has a partial sum of each in every 128-bit block; then the blocks are added.
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void sum_lanes(const Vector (&acc)[16], float* HWY_RESTRICT sums) {
  for (int i = 0; i < 16; ++i) sums[i] = hn::GetLane(acc[i]);
}
#else
HWY_INLINE Vector add_interleaved(const Vector a, const Vector b) {
  return hn::Add(hn::InterleaveLower(kFloats, a, b), hn::InterleaveUpper(kFloats, a, b));
}

HWY_INLINE void sum_lanes(const Vector (&acc)[16], float* HWY_RESTRICT sums) {
  const hn::Repartition<double, Floats> pairs;
  const hn::CappedTag<float, 4> block;
  HWY_ALIGN float buffer[hn::MaxLanes(Floats())];
  for (int i = 0; i < 4; ++i) {
    const auto ab = hn::BitCast(pairs, add_interleaved(acc[4 * i], acc[4 * i + 1]));
    const auto cd = hn::BitCast(pairs, add_interleaved(acc[4 * i + 2], acc[4 * i + 3]));
    const Vector abcd = hn::Add(hn::BitCast(kFloats, hn::InterleaveLower(pairs, ab, cd)),
                                hn::BitCast(kFloats, hn::InterleaveUpper(pairs, ab, cd)));
    hn::Store(abcd, kFloats, buffer);
    auto total = hn::Load(block, buffer);
    for (std::size_t lane = 4; lane < hn::Lanes(kFloats); lane += 4) {
      total = hn::Add(total, hn::Load(block, buffer + lane));
    }
    hn::StoreU(total, block, sums + 4 * i);
  }
}
#endif

// scores[r][0..3] = q[r] . k[0..3] for Rows rows; `dim` is a whole number of vectors.
template <int Rows, class T>
HWY_INLINE void score_block(const float* HWY_RESTRICT q, std::size_t q_stride, const T* const* k,
                            std::size_t dim, float* HWY_RESTRICT scores) {
  Vector acc[16];
  for (auto& a : acc) a = hn::Zero(kFloats);
  for (std::size_t d = 0; d < dim; d += hn::Lanes(kFloats)) {
    const Vector k0 = load_floats(k[0] + d), k1 = load_floats(k[1] + d);
    const Vector k2 = load_floats(k[2] + d), k3 = load_floats(k[3] + d);
    for (int r = 0; r < Rows; ++r) {
      const Vector row = hn::LoadU(kFloats, q + static_cast<std::size_t>(r) * q_stride + d);
      acc[4 * r] = hn::MulAdd(row, k0, acc[4 * r]);
      acc[4 * r + 1] = hn::MulAdd(row, k1, acc[4 * r + 1]);
      acc[4 * r + 2] = hn::MulAdd(row, k2, acc[4 * r + 2]);
      acc[4 * r + 3] = hn::MulAdd(row, k3, acc[4 * r + 3]);
    }
  }
  float sums[16];
  sum_lanes(acc, sums);
  for (int r = 0; r < Rows; ++r) std::memcpy(scores + r * kTileKeys, sums + 4 * r, 16);
}

#if HWY_ARCH_X86
constexpr bool kHas32Registers = HWY_TARGET <= HWY_AVX3;
#else
constexpr bool kHas32Registers = true;
#endif
// Keys per block of score_columns: with two vectors of rows, their sums take half of the registers.
// Divides the keys of a tile.
constexpr int kScoreKeys = kHas32Registers ? 8 : 4;

// scores[r][0..3] = column[0..3][r] for the rows of a vector.
HWY_INLINE void store_columns(Vector c0, Vector c1, Vector c2, Vector c3,
                              float* HWY_RESTRICT scores) {
  HWY_ALIGN float four[4 * hn::MaxLanes(Floats())];
  hn::StoreInterleaved4(c0, c1, c2, c3, kFloats, four);
  for (std::size_t r = 0; r < hn::Lanes(kFloats); ++r) {
    std::memcpy(scores + r * kTileKeys, four + 4 * r, 16);
  }
}

// scores[r][0..kScoreKeys) = q[r] . k[0..kScoreKeys) for the rows of Vectors vectors; `q` is
// [dim, q_stride]. Rows lie along the lanes, so no sum crosses them.
template <int Vectors>
HWY_INLINE void score_columns(const float* HWY_RESTRICT q, std::size_t q_stride,
                              const float* const* k, int dim, float* HWY_RESTRICT scores) {
  const std::size_t lanes = hn::Lanes(kFloats);
  Vector acc[kScoreKeys * Vectors];
  for (auto& a : acc) a = hn::Zero(kFloats);
  for (int d = 0; d < dim; ++d, q += q_stride) {
    Vector row[Vectors];
    for (int i = 0; i < Vectors; ++i) row[i] = hn::LoadU(kFloats, q + i * lanes);
    for (int key = 0; key < kScoreKeys; ++key) {
      const Vector value = hn::Set(kFloats, k[key][d]);
      for (int i = 0; i < Vectors; ++i) {
        acc[key * Vectors + i] = hn::MulAdd(value, row[i], acc[key * Vectors + i]);
      }
    }
  }
  // Each index is a constant here, or the compiler would keep `acc` in memory.
  const auto store = [&]<int i, int key>() {
    store_columns(acc[key * Vectors + i], acc[(key + 1) * Vectors + i],
                  acc[(key + 2) * Vectors + i], acc[(key + 3) * Vectors + i],
                  scores + i * lanes * kTileKeys + key);
  };
  [&]<int... Is>(std::integer_sequence<int, Is...>) {
    (store.template operator()<Is % Vectors, Is / Vectors * 4>(), ...);
  }
  (std::make_integer_sequence<int, kScoreKeys / 4 * Vectors>());
}

// scores[r][0..kDotKeys) = scale * dots[0..kDotKeys)[r] for kDotRows rows, or the first half.
HWY_INLINE void store_dots(const float* HWY_RESTRICT dots, bool both_halves, float scale,
                           float* HWY_RESTRICT scores) {
  const Vector factor = hn::Set(kFloats, scale);
  const std::size_t rows = both_halves ? kDotRows : kDotRows / 2;
  for (std::size_t r = 0; r < rows; r += hn::Lanes(kFloats)) {
    for (std::size_t key = 0; key < kDotKeys; key += 4) {
      const auto column = [&](std::size_t i) {
        return hn::Mul(hn::LoadU(kFloats, dots + (key + i) * kDotRows + r), factor);
      };
      store_columns(column(0), column(1), column(2), column(3), scores + r * kTileKeys + key);
    }
  }
}

// o[r] += sum over keys of p[r][key] * v[key], for Rows rows and Vectors vectors of the dim.
// Guarded: a value whose weight is 0 is not multiplied, as it may be a NaN that the row does not
// see.
template <int Rows, int Vectors, bool Guarded, class V, class T>
HWY_INLINE void value_block(const float* HWY_RESTRICT p, const V* const* v, int keys,
                            std::size_t offset, float* HWY_RESTRICT o, std::size_t o_stride,
                            const NextRows<T>& next) {
  const std::size_t lanes = hn::Lanes(kFloats);
  Vector acc[Rows * Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) {
      acc[r * Vectors + i] = hn::LoadU(kFloats, o + static_cast<std::size_t>(r) * o_stride +
                                                    static_cast<std::size_t>(i) * lanes);
    }
  }
  for (int key = 0; key < keys; ++key) {
    next.prefetch(key, offset, offset + Vectors * lanes);
    Vector value[Vectors];
    for (int i = 0; i < Vectors; ++i) {
      value[i] = load_floats(v[key] + offset + static_cast<std::size_t>(i) * lanes);
    }
    for (int r = 0; r < Rows; ++r) {
      const Vector weight = hn::Set(kFloats, p[r * kTileKeys + key]);
      const auto counts = hn::Ne(weight, hn::Zero(kFloats));
      for (int i = 0; i < Vectors; ++i) {
        const Vector seen = Guarded ? hn::IfThenElseZero(counts, value[i]) : value[i];
        acc[r * Vectors + i] = hn::MulAdd(weight, seen, acc[r * Vectors + i]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) {
      hn::StoreU(acc[r * Vectors + i], kFloats,
                 o + static_cast<std::size_t>(r) * o_stride + static_cast<std::size_t>(i) * lanes);
    }
  }
}

template <int Rows, bool Guarded, class V, class T>
HWY_INLINE void value_rows(const float* p, const V* const* v, int keys, std::size_t dim, float* o,
                           std::size_t o_stride, const NextRows<T>& next) {
  const std::size_t lanes = hn::Lanes(kFloats);
  std::size_t d = 0;
  for (; d + 4 * lanes <= dim; d += 4 * lanes) {
    value_block<Rows, 4, Guarded>(p, v, keys, d, o + d, o_stride, next);
  }
  for (; d < dim; d += lanes) {
    value_block<Rows, 1, Guarded>(p, v, keys, d, o + d, o_stride, next);
  }
}

// e^x for x <= 0, to 1.5 units in the last place; 0 below the normal numbers. Takes half the
// instructions of Highway's function, which also handles large x and denormal results.
// x = n ln 2 + r; e^r = 1 + r + r^2 q(r), where q is of degree 4 and minimax for |r| <= ln 2 / 2.
HWY_INLINE Vector exp_of_negative(Vector x) {
  const hn::RebindToSigned<Floats> words;
  const Vector least = hn::Set(kFloats, -87.33654f);  // ln 2^-126
  const auto in_range = hn::Ge(x, least);
  x = hn::Max(x, least);
  const auto power = hn::NearestInt(hn::Mul(x, hn::Set(kFloats, 1.44269504f)));
  const Vector n = hn::ConvertTo(kFloats, power);
  Vector r = hn::NegMulAdd(n, hn::Set(kFloats, 0.693147182f), x);  // ln 2 in float32, then the rest
  r = hn::NegMulAdd(n, hn::Set(kFloats, -1.90465421e-9f), r);
  Vector q = hn::Set(kFloats, 1.38145943e-3f);
  for (const float c : {8.36871734e-3f, 4.16683881e-2f, 1.66665206e-1f, 4.99999934e-1f}) {
    q = hn::MulAdd(q, r, hn::Set(kFloats, c));
  }
  const Vector e = hn::Add(hn::MulAdd(q, hn::Mul(r, r), r), hn::Set(kFloats, 1.0f));
  const auto scaled = hn::Add(hn::BitCast(words, e), hn::ShiftLeft<23>(power));
  return hn::IfThenElseZero(in_range, hn::BitCast(kFloats, scaled));
}

// Calls `block` with the row count as a constant: 4 at a time, then the rest.
template <class Block>
HWY_INLINE void for_row_blocks(int rows, const Block& block) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) block(std::integral_constant<int, 4>{}, r);
  if (rows - r == 3) block(std::integral_constant<int, 3>{}, r);
  if (rows - r == 2) block(std::integral_constant<int, 2>{}, r);
  if (rows - r == 1) block(std::integral_constant<int, 1>{}, r);
}

}  // namespace
}  // namespace kvmesh::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVMESH_ATTEND_PRODUCTS_INL
