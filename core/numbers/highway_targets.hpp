// The instruction sets that vector kernels are compiled for. Include before any Highway header.
//
// Each target compiles every kernel once more, so we keep those that matter: SSE4, AVX2 and AVX3
// (AVX-512 F/BW/CD/DQ/VL) on x86, NEON on Arm, and the compiler's baseline. Left out are SSSE3
// (older than any server), AVX3_DL, AVX3_ZEN4 and AVX3_SPR, which add what we do not use, and SVE
// and RVV, whose vectors have no size that an array of them would need. AVX3_ZEN4 and AVX3_SPR are
// given as bits because older Highway releases do not name them.
#pragma once

#define HWY_DISABLED_TARGETS                                                              \
  (HWY_SSSE3 | HWY_AVX3_DL | (1LL << 6) | (1LL << 4) | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_RVV)
