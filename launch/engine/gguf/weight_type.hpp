// Weights as a GGUF file stores them: in blocks of some elements that share scales.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace kvmesh::engine {

/// The element types of tensors, with the numbers that GGUF gives them.
enum class WeightType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2K = 10,
  kQ3K = 11,
  kQ4K = 12,
  kQ5K = 13,
  kQ6K = 14,
  kBF16 = 30,
};

/// The layout of one block. `supported`: dequantize() and multiply() can read it.
struct BlockLayout {
  std::string_view name;
  std::int64_t elements = 0;
  std::int64_t bytes = 0;
  bool supported = false;
};

/// Returns nothing for an unknown number.
std::optional<BlockLayout> block_layout(WeightType type);

/// Decodes `out.size()` elements, a whole number of blocks, of a supported type.
/// Plain code: the reference for the fast paths, and the only path of the rarer types.
void dequantize(WeightType type, const std::byte* blocks, std::span<float> out);

/// IEEE half to float32, exact.
float half_to_float(std::uint16_t half);

}  // namespace kvmesh::engine
