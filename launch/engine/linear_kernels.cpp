// One token: weights are decoded in registers and used at once; the read of the weights is the
// cost. More tokens: four rows are decoded to float32 once and used for all tokens, in tiles of 4
// rows x 4 tokens, whose 16 sums stay in registers: 8 loads serve 16 multiply-adds.
//
// Both ways compute w = scale * q + offset (one multiply-add), then add w * x to one vector of sums
// per (row, token), columns in order, so both give the same bits.

// Each target is compiled separately, so the number of targets sets the compile time of this file.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "launch/engine/linear_kernels.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>
// after highway.h
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "launch/engine/linear.hpp"
#include "launch/engine/linear_kernels.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Half a block of 32 at most, so that every vector of weights lies within one half.
using Floats = hn::CappedTag<float, 16>;
using Vector = hn::Vec<Floats>;
using Bytes = hn::Rebind<std::uint8_t, Floats>;
using SignedBytes = hn::Rebind<std::int8_t, Floats>;
using Ints = hn::Rebind<std::int32_t, Floats>;
using Halves = hn::Rebind<hwy::float16_t, Floats>;

constexpr Floats kFloats{};

HWY_INLINE std::int64_t Width() { return static_cast<std::int64_t>(hn::Lanes(kFloats)); }

/// Halves 0 and 1 of a block, as float32. Loads four: every block has at least 8 bytes.
struct Scales {
  HWY_INLINE explicit Scales(const std::uint8_t* block) {
    const hn::CappedTag<float, 4> floats;
    const hn::Rebind<hwy::float16_t, decltype(floats)> halves;
    const auto* from = reinterpret_cast<const hwy::float16_t*>(block);
    for (std::size_t i = 0; i < 4; i += hn::Lanes(floats)) {
      hn::StoreU(hn::PromoteTo(floats, hn::LoadU(halves, from + i)), floats, value + i);
    }
  }
  float value[4];
};

/// Elements [at, at + Width()) of a block whose 4-bit numbers are `packed`, as floats.
HWY_INLINE Vector Nibbles(const std::uint8_t* packed, std::int64_t at) {
  const auto bytes = hn::PromoteTo(Ints{}, hn::LoadU(Bytes{}, packed + at % 16));
  const auto low = hn::And(bytes, hn::Set(Ints{}, 15));
  return hn::ConvertTo(kFloats, at < 16 ? low : hn::ShiftRight<4>(bytes));
}

// A format decodes one block: constructed once per block, then called as at() in column order.

struct BlockQ4_0 {
  static constexpr std::int64_t kElements = 32;
  static constexpr std::int64_t kBytes = 18;
  HWY_INLINE explicit BlockQ4_0(const std::uint8_t* block) : packed(block + 2), scales(block) {}
  HWY_INLINE Vector At(std::int64_t at) const {
    const Vector scale = hn::Set(kFloats, scales.value[0]);
    const Vector offset = hn::Set(kFloats, -8.0f * scales.value[0]);
    return hn::MulAdd(Nibbles(packed, at), scale, offset);
  }
  const std::uint8_t* packed;
  Scales scales;
};

struct BlockQ4_1 {
  static constexpr std::int64_t kElements = 32;
  static constexpr std::int64_t kBytes = 20;
  HWY_INLINE explicit BlockQ4_1(const std::uint8_t* block) : packed(block + 4), scales(block) {}
  HWY_INLINE Vector At(std::int64_t at) const {
    const Vector scale = hn::Set(kFloats, scales.value[0]);
    const Vector offset = hn::Set(kFloats, scales.value[1]);
    return hn::MulAdd(Nibbles(packed, at), scale, offset);
  }
  const std::uint8_t* packed;
  Scales scales;
};

struct BlockQ8_0 {
  static constexpr std::int64_t kElements = 32;
  static constexpr std::int64_t kBytes = 34;
  HWY_INLINE explicit BlockQ8_0(const std::uint8_t* block) : bytes(block + 2), scales(block) {}
  HWY_INLINE Vector At(std::int64_t at) const {
    const auto* numbers = reinterpret_cast<const std::int8_t*>(bytes) + at;
    const auto ints = hn::PromoteTo(Ints{}, hn::LoadU(SignedBytes{}, numbers));
    return hn::Mul(hn::ConvertTo(kFloats, ints), hn::Set(kFloats, scales.value[0]));
  }
  const std::uint8_t* bytes;
  Scales scales;
};

struct BlockF16 {
  static constexpr std::int64_t kElements = 32;
  static constexpr std::int64_t kBytes = 64;
  HWY_INLINE explicit BlockF16(const std::uint8_t* block)
      : halves(reinterpret_cast<const hwy::float16_t*>(block)) {}
  HWY_INLINE Vector At(std::int64_t at) const {
    return hn::PromoteTo(kFloats, hn::LoadU(Halves{}, halves + at));
  }
  const hwy::float16_t* halves;
};

struct BlockF32 {
  static constexpr std::int64_t kElements = 32;
  static constexpr std::int64_t kBytes = 128;
  HWY_INLINE explicit BlockF32(const std::uint8_t* block)
      : floats(reinterpret_cast<const float*>(block)) {}
  HWY_INLINE Vector At(std::int64_t at) const { return hn::LoadU(kFloats, floats + at); }
  const float* floats;
};

HWY_INLINE const std::uint8_t* RowBytes(const Matrix& w, std::int64_t row) {
  return reinterpret_cast<const std::uint8_t*>(w.row(row));
}

/// One token, `Rows` rows at once: their sums are independent, which hides the adds' latency.
template <class Block, int Rows>
HWY_INLINE void DotRows(const RowTask& task, std::int64_t row) {
  const Matrix& w = task.weights;
  const std::uint8_t* block = RowBytes(w, task.first_row + row);
  const std::int64_t ahead = 4 * kRowGroup * w.row_bytes;
  Vector sums[Rows];
  for (int r = 0; r < Rows; ++r) sums[r] = hn::Zero(kFloats);
  for (std::int64_t c = 0; c < w.cols; c += Block::kElements, block += Block::kBytes) {
    for (int r = 0; r < Rows; ++r) {
      const Block decoded(block + r * w.row_bytes);
      hwy::Prefetch(block + r * w.row_bytes + ahead);
      for (std::int64_t at = 0; at < Block::kElements; at += Width()) {
        const Vector x = hn::LoadU(kFloats, task.x + c + at);
        sums[r] = hn::MulAdd(decoded.At(at), x, sums[r]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    task.y[row + r] = hn::GetLane(hn::SumOfLanes(kFloats, sums[r]));
  }
}

template <class Block>
void MultiplyOne(const RowTask& task) {
  std::int64_t row = 0;
  for (; row + kRowGroup <= task.rows; row += kRowGroup) DotRows<Block, kRowGroup>(task, row);
  for (; row < task.rows; ++row) DotRows<Block, 1>(task, row);
}

/// `Tokens` tokens from `token` on times the decoded rows [kRowGroup][cols].
template <int Tokens>
HWY_INLINE void DotTile(const RowTask& task, const float* decoded, std::int64_t row,
                        std::int64_t rows, std::int64_t token) {
  const std::int64_t cols = task.weights.cols;
  const float* x = task.x + token * cols;
  Vector sums[kRowGroup][Tokens];
  for (auto& of_row : sums) {
    for (Vector& sum : of_row) sum = hn::Zero(kFloats);
  }
  for (std::int64_t c = 0; c < cols; c += Width()) {
    Vector xs[Tokens];
    for (int t = 0; t < Tokens; ++t) xs[t] = hn::LoadU(kFloats, x + t * cols + c);
    for (int r = 0; r < kRowGroup; ++r) {
      const Vector w = hn::LoadU(kFloats, decoded + r * cols + c);
      for (int t = 0; t < Tokens; ++t) sums[r][t] = hn::MulAdd(w, xs[t], sums[r][t]);
    }
  }
  // All indices are constants: otherwise the compiler keeps `sums` in memory, not in registers.
  float results[Tokens][kRowGroup];
  for (int t = 0; t < Tokens; ++t) {
    for (int r = 0; r < kRowGroup; ++r) {
      results[t][r] = hn::GetLane(hn::SumOfLanes(kFloats, sums[r][t]));
    }
  }
  for (int t = 0; t < Tokens; ++t) {
    std::copy_n(results[t], rows, task.y + (token + t) * task.y_stride + row);
  }
}

template <class Block>
HWY_INLINE void DecodeRow(const Matrix& w, std::int64_t row, float* out) {
  const std::uint8_t* block = RowBytes(w, row);
  for (std::int64_t c = 0; c < w.cols; c += Block::kElements, block += Block::kBytes) {
    const Block decoded(block);
    for (std::int64_t at = 0; at < Block::kElements; at += Width()) {
      hn::StoreU(decoded.At(at), kFloats, out + c + at);
    }
  }
}

/// Any type that dequantize() reads.
struct AnyBlock {};
template <>
HWY_INLINE void DecodeRow<AnyBlock>(const Matrix& w, std::int64_t row, float* out) {
  dequantize(w.type, w.row(row), {out, static_cast<std::size_t>(w.cols)});
}

template <class Block>
void MultiplyMany(const RowTask& task) {
  const std::int64_t cols = task.weights.cols;
  std::vector<float> decoded(static_cast<std::size_t>(kRowGroup * cols));
  for (std::int64_t row = 0; row < task.rows; row += kRowGroup) {
    const std::int64_t rows = std::min(kRowGroup, task.rows - row);
    for (std::int64_t r = 0; r < rows; ++r) {
      DecodeRow<Block>(task.weights, task.first_row + row + r, decoded.data() + r * cols);
    }
    std::int64_t token = 0;
    for (; token + 4 <= task.tokens; token += 4) {
      DotTile<4>(task, decoded.data(), row, rows, token);
    }
    for (; token < task.tokens; ++token) DotTile<1>(task, decoded.data(), row, rows, token);
  }
}

template <class Block>
void MultiplyBlocks(const RowTask& task) {
  task.tokens == 1 ? MultiplyOne<Block>(task) : MultiplyMany<Block>(task);
}

void MultiplyRows(const RowTask& task) {
  switch (task.weights.type) {
    case WeightType::kQ4_0:
      return MultiplyBlocks<BlockQ4_0>(task);
    case WeightType::kQ4_1:
      return MultiplyBlocks<BlockQ4_1>(task);
    case WeightType::kQ8_0:
      return MultiplyBlocks<BlockQ8_0>(task);
    case WeightType::kF16:
      return MultiplyBlocks<BlockF16>(task);
    case WeightType::kF32:
      return MultiplyBlocks<BlockF32>(task);
    default:
      return MultiplyMany<AnyBlock>(task);
  }
}

HWY_INLINE void SiluVector(const float* gate, const float* up, float* out) {
  const Vector g = hn::LoadU(kFloats, gate);
  const Vector one = hn::Set(kFloats, 1.0f);
  // Highway's Exp is wrong where float32 overflows; from 88 on the result is below 1e-36.
  const Vector exponent = hn::Min(hn::Neg(g), hn::Set(kFloats, 88.0f));
  const Vector silu = hn::Div(g, hn::Add(one, hn::Exp(kFloats, exponent)));
  hn::StoreU(hn::Mul(silu, hn::LoadU(kFloats, up)), kFloats, out);
}

void SiluTimes(const float* gate, const float* up, float* out, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + Width() <= count; i += Width()) SiluVector(gate + i, up + i, out + i);
  if (i == count) return;
  // The rest is padded and uses the same instructions, so that it gets the same bits.
  std::array<std::array<float, 16>, 3> padded{};
  std::copy(gate + i, gate + count, padded[0].begin());
  std::copy(up + i, up + count, padded[1].begin());
  SiluVector(padded[0].data(), padded[1].data(), padded[2].data());
  std::copy_n(padded[2].begin(), count - i, out + i);
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace kvmesh::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmesh::engine {

HWY_EXPORT(MultiplyRows);
HWY_EXPORT(SiluTimes);
HWY_EXPORT(TargetName);

void multiply_rows(const RowTask& task) { HWY_DYNAMIC_DISPATCH(MultiplyRows)(task); }

void silu_times(const float* gate, const float* up, float* out, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(SiluTimes)(gate, up, out, count);
}

std::string_view linear_target() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace kvmesh::engine
#endif
