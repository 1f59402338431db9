// One task of attention in reproducible mode, compiled once per instruction set (Highway).
//
// A chunk's weights are powers of two times exp(score - exponent * ln 2), where the exponent
// follows from the chunk's own largest score. So its sums are the same on every rank and thread,
// and the row adds them with an exact scale: core/pod/exact_bins.hpp.

#if defined(KVMESH_ATTEND_EXACT_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMESH_ATTEND_EXACT_INL
#undef KVMESH_ATTEND_EXACT_INL
#else
#define KVMESH_ATTEND_EXACT_INL
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attend_exact.hpp"
#include "kernels/cpu/attend_tile-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::cpu::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// A chunk without a visible key has no exponent.
constexpr std::int32_t kNoExponent = std::numeric_limits<std::int32_t>::min();

using Ints = hn::RebindToSigned<Floats>;
constexpr Ints kInts;
using IntVector = hn::Vec<Ints>;

// o[r] = sum over keys of p[r][key] * v[key], for Rows rows and Vectors vectors of the dim; tops[r]
// = max(tops[r], bits of |o[r]|). As integers, infinity and the NaNs are above all numbers.
template <int Rows, int Vectors, bool Guarded, class V, class T>
HWY_INLINE void chunk_block(const float* HWY_RESTRICT p, const V* const* v, int keys,
                            std::size_t offset, float* HWY_RESTRICT o, std::size_t o_stride,
                            IntVector* tops, const NextRows<T>& next) {
  const std::size_t lanes = hn::Lanes(kFloats);
  Vector acc[Rows * Vectors];
  for (auto& a : acc) a = hn::Zero(kFloats);
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
      const Vector sum = acc[r * Vectors + i];
      hn::StoreU(sum, kFloats,
                 o + static_cast<std::size_t>(r) * o_stride + static_cast<std::size_t>(i) * lanes);
      tops[r] = hn::Max(tops[r], hn::BitCast(kInts, hn::Abs(sum)));
    }
  }
}

// Computes the outputs of a chunk, and bits[r] of the largest of each row. Prefetches the first
// half of the next rows; add_terms prefetches the second half, so that memory is busy then, too.
template <int Rows, bool Guarded, class V, class T>
HWY_INLINE void chunk_rows(const float* p, const V* const* v, int keys, std::size_t dim, float* o,
                           std::int32_t* bits, const NextRows<T>& next) {
  const std::size_t lanes = hn::Lanes(kFloats);
  IntVector tops[Rows];
  for (auto& top : tops) top = hn::Zero(kInts);
  std::size_t d = 0;
  for (; d + 4 * lanes <= dim; d += 4 * lanes) {
    const NextRows<T> ask = d < dim / 2 ? next : NextRows<T>{};
    chunk_block<Rows, 4, Guarded>(p, v, keys, d, o + d, dim, tops, ask);
  }
  for (; d < dim; d += lanes) {
    chunk_block<Rows, 1, Guarded>(p, v, keys, d, o + d, dim, tops, NextRows<T>{});
  }
  for (int r = 0; r < Rows; ++r) bits[r] = hn::GetLane(hn::MaxOfLanes(kInts, tops[r]));
}

// add_term of core/pod/exact_bins.hpp for the terms x[0..dim) of bin `top` (IsTop) or the one
// below.
template <bool IsTop>
HWY_INLINE void add_terms(const ExactRow& row, const float* x, std::size_t dim,
                          std::int32_t exponent) {
  const hn::CappedTag<double, 8> doubles;
  const hn::RebindToSigned<decltype(doubles)> ints;
  const hn::Rebind<float, decltype(doubles)> floats;
  const std::int32_t top = row.head->o_bin;
  const auto offset = hn::Set(doubles, kRoundingOffset);
  const auto offset_bits = hn::BitCast(ints, offset);
  const auto low_scale = hn::Set(doubles, power_of_two(exponent - kBinBits * (top - 1)));
  const auto high_scale = hn::Set(doubles, IsTop ? power_of_two(exponent - kBinBits * top) : 0.0);
  const auto high_unit = hn::Set(doubles, IsTop ? power_of_two(kBinBits * top - exponent) : 0.0);
  const auto add = [&](std::int64_t* sum, auto shifted) {
    const auto units = hn::Sub(hn::BitCast(ints, shifted), offset_bits);
    hn::StoreU(hn::Add(hn::LoadU(ints, sum), units), ints, sum);
  };
  for (std::size_t i = 0; i < dim; i += hn::Lanes(doubles)) {
    auto rest = hn::PromoteTo(doubles, hn::LoadU(floats, x + i));
    if constexpr (IsTop) {
      const auto high = hn::MulAdd(rest, high_scale, offset);
      add(row.high + i, high);
      rest = hn::NegMulAdd(hn::Sub(high, offset), high_unit, rest);
    }
    add(row.low + i, hn::MulAdd(rest, low_scale, offset));
  }
}

template <class T>
class ExactTaskRunner : TaskRunner<T> {
  using Base = TaskRunner<T>;
  using Base::block_, Base::rows_, Base::scratch_, Base::v_dim_;

 public:
  ExactTaskRunner(const ExactInputs& in, const WorkTask& task, AttendScratch& scratch)
      : Base(in.attend, task, scratch), exact_(in), chunk_(chunk_keys(in.attend.shape.page_size)) {}

  void run() {
    Base::load_queries();
    for (int r = 0; r < rows_; ++r) clear_row(row(r), exact_.out.dim());
    Base::for_each_tile([&](const Tile<T>& tile, const Tile<T>& next) { use(tile, next); });
  }

 private:
  void use(const Tile<T>& tile, const Tile<T>& next) {
    Base::score(tile, next);
    if (Base::widen_v_) {
      const float* rows[kTileKeys];
      Base::widen(tile.v, tile.v_scale, tile.keys, Base::in_.shape.v_dim, v_dim_,
                  scratch_.v_rows.data(), rows);
      add_chunks(rows, tile, next);
    } else if constexpr (kLoads<T>) {
      add_chunks(tile.v, tile, next);
    }
  }

  template <class V>
  void add_chunks(const V* const* v, const Tile<T>& tile, const Tile<T>& next) {
    const bool hides = Base::hides(tile);
    for (int begin = 0; begin < tile.keys; begin += chunk_) {
      const int keys = std::min(chunk_, tile.keys - begin);
      for_row_blocks(rows_, [&](auto rows, int r) {
        const NextRows<T> ask{next.v + begin, r == 0 ? next.keys - begin : 0};
        add_chunk<rows()>(v + begin, begin, keys, r, hides, ask);
      });
    }
  }

  template <int Rows, class V>
  void add_chunk(const V* const* v, int begin, int keys, int first_row, bool hides,
                 const NextRows<T>& next) {
    std::int32_t exponents[Rows];
    bool is_seen = false;
    for (int i = 0; i < Rows; ++i) {
      exponents[i] = weigh(first_row + i, begin, keys);
      is_seen |= exponents[i] != kNoExponent;
    }
    if (!is_seen) return;
    const float* p = scratch_.scores.data() + first_row * kTileKeys + begin;
    float* o = scratch_.o.data() + static_cast<std::size_t>(first_row) * v_dim_;
    std::int32_t bits[Rows];
    if (hides) {
      chunk_rows<Rows, true>(p, v, keys, v_dim_, o, bits, next);
    } else {
      chunk_rows<Rows, false>(p, v, keys, v_dim_, o, bits, next);
      // 0 * infinity: computed again without the weights of 0, as for a tile with a mask.
      if (*std::max_element(bits, bits + Rows) >= kInfinityBits) {
        chunk_rows<Rows, true>(p, v, keys, v_dim_, o, bits, NextRows<T>{});
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int key = i; key < keys; key += Rows) next.prefetch(key, v_dim_ / 2, v_dim_);
      if (exponents[i] == kNoExponent) continue;
      add_outputs(row(first_row + i), o + static_cast<std::size_t>(i) * v_dim_, bits[i],
                  exponents[i]);
    }
  }

  // Turns the scores of a chunk into weights relative to 2^exponent and adds them to the row's sum.
  // Returns the exponent.
  std::int32_t weigh(int r, int begin, int keys) {
    float* scores = scratch_.scores.data() + r * kTileKeys + begin;
    ExactRowHead& head = *row(r).head;
    float buffer[kChunkKeys];
    float* chunk = scores;
    if (keys < kChunkKeys) {
      chunk = buffer;
      std::fill(std::copy_n(scores, keys, chunk), chunk + kChunkKeys, kNoKeys);
    }
    const float max = largest(chunk);
    if (max == kNoKeys || std::isnan(max)) {
      if (std::isnan(max)) head.max = max;
      std::fill_n(scores, keys, 0.0f);
      return kNoExponent;
    }
    if (head.max < max) head.max = max;  // a NaN stays
    const float counted = std::clamp(max, -kLargestScore, kLargestScore);
    if (counted != max) limit(chunk);
    constexpr float kLog2E = 1.44269504f;
    const float exponent = std::floor(counted * kLog2E);
    const float sum = exponentials(chunk, exponent);
    if (chunk != scores) std::copy_n(chunk, keys, scores);
    add_weight(head, sum, static_cast<std::int32_t>(exponent));
    return static_cast<std::int32_t>(exponent);
  }

  // Returns NaN for a score that is NaN or +inf.
  static float largest(const float* chunk) {
    Vector top = hn::LoadU(kFloats, chunk);
    auto nan = hn::IsNaN(top);
    for (std::size_t i = hn::Lanes(kFloats); i < kChunkKeys; i += hn::Lanes(kFloats)) {
      const Vector score = hn::LoadU(kFloats, chunk + i);
      nan = hn::Or(nan, hn::IsNaN(score));
      top = hn::Max(top, score);
    }
    const float max = hn::GetLane(hn::MaxOfLanes(kFloats, top));
    const bool is_number = hn::AllFalse(kFloats, nan) && max != -kNoKeys;
    return is_number ? max + 0.0f : std::numeric_limits<float>::quiet_NaN();  // 0, never -0
  }

  static void limit(float* chunk) {
    for (int i = 0; i < kChunkKeys; ++i) {
      if (chunk[i] != kNoKeys) chunk[i] = std::clamp(chunk[i], -kLargestScore, kLargestScore);
    }
  }

  // exp(score - exponent * ln 2), in place; returns their sum. ln 2 has two parts, the first with
  // few bits, so that its product with an exponent is exact.
  static float exponentials(float* chunk, float exponent) {
    const Vector minus = hn::Set(kFloats, -exponent);
    const Vector ln2_high = hn::Set(kFloats, 0.693359375f);
    const Vector ln2_low = hn::Set(kFloats, -2.12194440e-4f);
    Vector total = hn::Zero(kFloats);
    for (std::size_t i = 0; i < kChunkKeys; i += hn::Lanes(kFloats)) {
      const Vector high = hn::MulAdd(minus, ln2_high, hn::LoadU(kFloats, chunk + i));
      const Vector p = hn::Exp(kFloats, hn::MulAdd(minus, ln2_low, high));
      hn::StoreU(p, kFloats, chunk + i);
      total = hn::Add(total, p);
    }
    return hn::GetLane(hn::SumOfLanes(kFloats, total));
  }

  static constexpr std::int32_t kInfinityBits = 0x7F80'0000;

  // `bits` are those of the largest |o|.
  void add_outputs(const ExactRow& row, const float* o, std::int32_t bits, std::int32_t exponent) {
    if (bits == 0) return;
    if (bits >= kInfinityBits) return raise_outputs(row, exact_.out.dim(), kNotFinite);
    const std::int32_t bin = bin_of(exponent + bound_of(bits));
    if (bin > row.head->o_bin) raise_outputs(row, exact_.out.dim(), bin);
    if (bin == row.head->o_bin) {
      add_terms<true>(row, o, v_dim_, exponent);
    } else if (bin == row.head->o_bin - 1) {
      add_terms<false>(row, o, v_dim_, exponent);
    }
  }

  ExactRow row(int r) const {
    if (block_.splits > 1) return exact_.workspace.row(Base::workspace_row(r));
    return exact_.out.row(Base::token_of(r) * Base::in_.shape.q_heads + Base::head_of(r));
  }

  const ExactInputs& exact_;
  const int chunk_;
};

}  // namespace
}  // namespace kvmesh::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVMESH_ATTEND_EXACT_INL
