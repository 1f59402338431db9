// Float8 rows as float16 operands of wgmma in registers: a[i] of A is row g + 8 * (i % 2), elements
// 8 * (i / 2) + 2 * t and the one after it, where g = lane / 4, t = lane % 4.
//
//   K    row = key    ldmatrix: bytes 4 * t .. 4 * t + 3 of 16. They are k's 2 * t, 2 * t + 1,
//                     2 * t + 8, 2 * t + 9 of a product: queries lie in that order
//                     (scaled_queries.cuh)
//   V^T  row = dim    ldmatrix.trans of pairs of bytes: dims 2 * g, 2 * g + 1 of keys 2 * t and
//                     2 * t + 1. Exchanging the middle bytes makes pairs of keys: rows g and g + 8
//                     are dims 2 * g and 2 * g + 1
#pragma once

#include "kernels/cuda/common/ptx.cuh"

namespace kvmesh::cuda {

/// From matrices of 8 keys, and of the 8 after them, of the same 16 dims.
__device__ inline void widen_keys(std::uint32_t low_row, std::uint32_t high_row,
                                  std::uint32_t (&a)[4]) {
  a[0] = cvt_rn_f16x2_e4m3x2<0>(low_row);
  a[1] = cvt_rn_f16x2_e4m3x2<0>(high_row);
  a[2] = cvt_rn_f16x2_e4m3x2<1>(low_row);
  a[3] = cvt_rn_f16x2_e4m3x2<1>(high_row);
}

/// From transposed matrices of 8 keys, and of the 8 after them, of the same 16 dims.
__device__ inline void widen_values(std::uint32_t low_keys, std::uint32_t high_keys,
                                    std::uint32_t (&a)[4]) {
  constexpr unsigned kMiddleExchanged = 0x3120;
  const std::uint32_t low = __byte_perm(low_keys, 0, kMiddleExchanged);
  const std::uint32_t high = __byte_perm(high_keys, 0, kMiddleExchanged);
  a[0] = cvt_rn_f16x2_e4m3x2<0>(low);
  a[1] = cvt_rn_f16x2_e4m3x2<1>(low);
  a[2] = cvt_rn_f16x2_e4m3x2<0>(high);
  a[3] = cvt_rn_f16x2_e4m3x2<1>(high);
}

}  // namespace kvmesh::cuda
