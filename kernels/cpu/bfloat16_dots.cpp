#include "kernels/cpu/bfloat16_dots.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

namespace kvmesh::cpu {
namespace {

// Highway has no such target, so this function names its instruction set itself.
#define KVMESH_AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))

// The loops are unrolled, or the compiler would keep the sums in memory: 16 of the 32 registers.
template <int kVectors>
KVMESH_AVX512_BF16 void dots_of(const std::uint32_t* q, std::size_t q_stride,
                                const std::uint16_t* const* k, int pairs, float* dots) {
  __m512 sums[kDotKeys * kVectors];
#pragma GCC unroll 16
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (int d = 0; d < pairs; ++d, q += q_stride) {
    __m512bh rows[kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) {
      rows[i] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(q + 16 * i));
    }
#pragma GCC unroll 8
    for (int key = 0; key < kDotKeys; ++key) {
      std::int32_t pair;
      std::memcpy(&pair, k[key] + 2 * d, sizeof pair);
      const auto both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) {
        __m512& sum = sums[key * kVectors + i];
        sum = _mm512_dpbf16_ps(sum, rows[i], both);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kDotKeys * kVectors; ++i) {
    _mm512_storeu_ps(dots + i / kVectors * kDotRows + i % kVectors * 16, sums[i]);
  }
}

}  // namespace

bool has_bfloat16_dots() {
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0;
  return has;
}

void bfloat16_dots(const std::uint32_t* q, std::size_t q_stride, const std::uint16_t* const* k,
                   int pairs, bool both_halves, float* dots) {
  (both_halves ? dots_of<2> : dots_of<1>)(q, q_stride, k, pairs, dots);
}

}  // namespace kvmesh::cpu

#else

namespace kvmesh::cpu {

bool has_bfloat16_dots() { return false; }
void bfloat16_dots(const std::uint32_t*, std::size_t, const std::uint16_t* const*, int, bool,
                   float*) {}

}  // namespace kvmesh::cpu

#endif
