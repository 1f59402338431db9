// Layouts, all little-endian, `d`, `m` being half floats:
//
//   Q4_0  32:  d | 16 bytes: byte i = element i (low half), element i + 16 (high);  w = d (q - 8)
//   Q4_1  32:  d | m | 16 bytes as Q4_0;                                            w = d q + m
//   Q5_0  32:  d | 32 bits: bit i = the fifth bit of element i | 16 bytes as Q4_0;  w = d (q - 16)
//   Q5_1  32:  d | m | 32 bits and 16 bytes as Q5_0;                                w = d q + m
//   Q8_0  32:  d | 32 signed bytes;                                                 w = d q
//   Q4_K 256:  d | m | 12 bytes: 8 pairs of 6-bit (scale, min) | 128 bytes: of each 64 elements,
//              the first 32 in the low halves and the next in the high;   w = d scale q - m min
//   Q5_K 256:  as Q4_K, with 32 bytes before the 128: bit j of byte i = the fifth bit of element
//              32 j + i
//   Q6_K 256:  128 bytes low 4 bits | 64 bytes high 2 bits | 16 signed scales | d;
//              w = d scale (q - 32)
#include "launch/engine/gguf/weight_type.hpp"

#include <bit>
#include <cstring>

namespace kvmesh::engine {
namespace {

float half_at(const std::uint8_t* bytes) {
  return half_to_float(static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8));
}

float float_at(const std::uint8_t* bytes) {
  float value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

/// 16 bytes of two 4-bit numbers each: w = scale * q + offset.
void unpack_nibbles(const std::uint8_t* packed, float scale, float offset, float* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * static_cast<float>(packed[i] & 15) + offset;
    out[i + 16] = scale * static_cast<float>(packed[i] >> 4) + offset;
  }
}

/// 16 bytes as above, whose numbers have a fifth bit in the four bytes `high`.
void unpack_five_bits(const std::uint8_t* high, const std::uint8_t* packed, float scale,
                      float offset, float* out) {
  for (int i = 0; i < 32; ++i) {
    const int low = packed[i % 16] >> (i / 16 * 4) & 15;
    const int fifth = high[i / 8] >> (i % 8) & 1;
    out[i] = scale * static_cast<float>(low | fifth << 4) + offset;
  }
}

/// Number `index` of the eight 6-bit scales (first) and mins (second) in the 12 bytes of Q4_K: the
/// first four lie in the low six bits of bytes 0-3 and 4-7; of the last four, the low four bits lie
/// in bytes 8-11 and the top two in the top bits of bytes 0-7.
struct ScaleMin {
  float scale;
  float min;
};
ScaleMin scale_min(const std::uint8_t* packed, int index) {
  if (index < 4) {
    return {static_cast<float>(packed[index] & 63), static_cast<float>(packed[index + 4] & 63)};
  }
  const int low = packed[index + 4];
  return {static_cast<float>((low & 15) | packed[index - 4] >> 6 << 4),
          static_cast<float>(low >> 4 | packed[index] >> 6 << 4)};
}

/// Q4_K; or, with the fifth bits of all elements in the 32 bytes before the others, Q5_K.
void dequantize_k(const std::uint8_t* block, bool five_bits, float* out) {
  const float d = half_at(block);
  const float m = half_at(block + 2);
  const std::uint8_t* high = block + 16;
  const std::uint8_t* packed = five_bits ? high + 32 : high;
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, min] = scale_min(block + 4, sub);
    const std::uint8_t* bytes = packed + sub / 2 * 32;
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int fifth = five_bits ? high[i] >> sub & 1 : 0;
      const int q = (bytes[i] >> shift & 15) | fifth << 4;
      out[sub * 32 + i] = d * scale * static_cast<float>(q) - m * min;
    }
  }
}

void dequantize_q6k(const std::uint8_t* block, float* out) {
  const float d = half_at(block + 208);
  for (int i = 0; i < 256; ++i) {
    // Two halves of 128 elements, each four rows of 32: rows 0 and 2 share the bytes [0, 32) of the
    // half's low bits, rows 1 and 3 the bytes [32, 64); all four share its 32 bytes of high bits.
    const int half = i / 128;
    const int row = i % 128 / 32;
    const int column = i % 32;
    const int low = block[half * 64 + row % 2 * 32 + column] >> (row / 2 * 4) & 15;
    const int high = block[128 + half * 32 + column] >> (row * 2) & 3;
    const auto scale = static_cast<std::int8_t>(block[192 + i / 16]);
    out[i] = d * static_cast<float>(scale) * static_cast<float>((low | high << 4) - 32);
  }
}

void dequantize_block(WeightType type, const std::uint8_t* block, float* out) {
  switch (type) {
    case WeightType::kF32:
      *out = float_at(block);
      break;
    case WeightType::kF16:
      *out = half_at(block);
      break;
    case WeightType::kBF16:
      *out = std::bit_cast<float>(static_cast<std::uint32_t>(block[0] | block[1] << 8) << 16);
      break;
    case WeightType::kQ4_0:
      unpack_nibbles(block + 2, half_at(block), -8.0f * half_at(block), out);
      break;
    case WeightType::kQ4_1:
      unpack_nibbles(block + 4, half_at(block), half_at(block + 2), out);
      break;
    case WeightType::kQ5_0:
      unpack_five_bits(block + 2, block + 6, half_at(block), -16.0f * half_at(block), out);
      break;
    case WeightType::kQ5_1:
      unpack_five_bits(block + 4, block + 8, half_at(block), half_at(block + 2), out);
      break;
    case WeightType::kQ8_0:
      for (int i = 0; i < 32; ++i) {
        out[i] = half_at(block) * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
      }
      break;
    case WeightType::kQ4K:
      dequantize_k(block, false, out);
      break;
    case WeightType::kQ5K:
      dequantize_k(block, true, out);
      break;
    case WeightType::kQ6K:
      dequantize_q6k(block, out);
      break;
    default:
      break;
  }
}

}  // namespace

std::optional<BlockLayout> block_layout(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return BlockLayout{"F32", 1, 4, true};
    case WeightType::kF16:
      return BlockLayout{"F16", 1, 2, true};
    case WeightType::kBF16:
      return BlockLayout{"BF16", 1, 2, true};
    case WeightType::kQ4_0:
      return BlockLayout{"Q4_0", 32, 18, true};
    case WeightType::kQ4_1:
      return BlockLayout{"Q4_1", 32, 20, true};
    case WeightType::kQ5_0:
      return BlockLayout{"Q5_0", 32, 22, true};
    case WeightType::kQ5_1:
      return BlockLayout{"Q5_1", 32, 24, true};
    case WeightType::kQ8_0:
      return BlockLayout{"Q8_0", 32, 34, true};
    case WeightType::kQ2K:
      return BlockLayout{"Q2_K", 256, 84, false};
    case WeightType::kQ3K:
      return BlockLayout{"Q3_K", 256, 110, false};
    case WeightType::kQ4K:
      return BlockLayout{"Q4_K", 256, 144, true};
    case WeightType::kQ5K:
      return BlockLayout{"Q5_K", 256, 176, true};
    case WeightType::kQ6K:
      return BlockLayout{"Q6_K", 256, 210, true};
  }
  return std::nullopt;
}

void dequantize(WeightType type, const std::byte* blocks, std::span<float> out) {
  const BlockLayout layout = block_layout(type).value();
  const auto* block = reinterpret_cast<const std::uint8_t*>(blocks);
  const auto step = static_cast<std::size_t>(layout.elements);
  for (std::size_t i = 0; i + step <= out.size(); i += step, block += layout.bytes) {
    dequantize_block(type, block, out.data() + i);
  }
}

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7FFFu;
  if (magnitude >= 0x7C00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7F80'0000u | (magnitude & 0x3FFu) << 13);
  }
  // In float32's fields the exponent is 112 too low; the multiplication corrects that for normal
  // and subnormal numbers alike, exactly.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
}

}  // namespace kvmesh::engine
