// Products of bfloat16 queries and keys by the processor's own dot products (AVX512_BF16): twice as
// many multiply-adds per instruction as in float32, and keys are read from the pages as they are.
//
// Products are exact, sums are float32. Numbers below 2^-126 count as 0; no softmax depends on
// them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvmesh::cpu {

/// Size of a block of dots: keys, which divide those of a tile, and rows, whose second half is
/// optional.
inline constexpr int kDotKeys = 8;
inline constexpr int kDotRows = 32;

/// True if this processor has the instructions.
bool has_bfloat16_dots();

/// dots[key][r] = q[r] . k[key] for kDotKeys keys and kDotRows rows, or the first half of the rows.
///   q     [pairs, q_stride]: elements 2 d and 2 d + 1 of each row in one word
///   k     [kDotKeys]: rows of 2 * pairs elements
///   dots  [kDotKeys, kDotRows]
/// REQUIRES: has_bfloat16_dots().
void bfloat16_dots(const std::uint32_t* q, std::size_t q_stride, const std::uint16_t* const* k,
                   int pairs, bool both_halves, float* dots);

}  // namespace kvmesh::cpu
