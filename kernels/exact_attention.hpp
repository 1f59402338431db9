// The sums of reproducible attention on every device: their chunks and limits. The CPU's attention
// is cpu/exact_attention.hpp, that of GPUs the family of kernels cuda/attend/exact.
#pragma once

#include <cstdint>
#include <numeric>

#include "kvmesh/dtype.hpp"

namespace kvmesh {

/// A chunk's keys are summed in float32, in key order; chunks are summed exactly. So a row's bits
/// depend on its chunks alone. A chunk is part of a page, and a page lies on one rank. With 16
/// keys, 16 products are added per number that goes into the exact sums.
inline constexpr int kChunkKeys = 16;

/// Keys per chunk; chunks begin at multiples of this position. All page sizes that are multiples of
/// 16 have the same chunks, so they give the same bits.
constexpr int chunk_keys(int page_size) { return std::gcd(page_size, kChunkKeys); }

/// Length of the longest sequence whose sums are exact: 2^28 tokens with pages of 16.
std::int64_t longest_exact_sequence(int page_size);

/// Returns whether a GPU computes such attention over these pages.
bool gpu_has_exact_attention(Dtype pages, int k_dim, int v_dim);

}  // namespace kvmesh
