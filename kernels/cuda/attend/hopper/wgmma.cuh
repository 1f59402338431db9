// The tensor cores of sm_90a: products of a warpgroup (4 warps), 64 rows of A by N columns of B,
// over 16 elements of K. Operands are descriptions of shared memory (image.hpp); both are of the
// pool's type, a constant of the kernel: kPoolType.
//
// Accumulators, with g = lane / 4, t = lane % 4 and w the warp of the group: d[4 * j + i] is row
// 16 * w + g + 8 * (i / 2), column 8 * j + 2 * t + i % 2.
#pragma once

#include <cstdint>

#include "kernels/cuda/common/elements.cuh"

namespace kvmesh::cuda {

/// Before the first product after other instructions have touched its registers.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Until at most `Pending` groups are under way. Accumulators are to be tied to it.
template <int Pending>
__device__ inline void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// The compiler may not read these registers before the wait that stands before this.
template <int Count>
__device__ inline void wgmma_tie(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// In which direction the rows of an operand run in shared memory: those of keys and queries along
/// K, those of values across it.
enum class Rows : int { kAlongK = 0, kAcrossK = 1 };

// The widths differ in their lists of registers alone. Operand numbers: the accumulators, then a,
// b, `add` and how A's rows run.
#define KVMESH_REGISTERS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define KVMESH_WGMMA_OF(TYPE, N, D, A, B, ADD, ROWS, ...)                                    \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                   \
               ", 0;\n"                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" D "}, " A \
               ", " B ", add, 1, 1, " ROWS ", 0;\n}"                                         \
               : __VA_ARGS__                                                                 \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(RowsOfA)))
#define KVMESH_WGMMA(...)                       \
  if constexpr (kPoolType == Dtype::kFloat16) { \
    KVMESH_WGMMA_OF("f16", __VA_ARGS__);        \
  } else {                                      \
    KVMESH_WGMMA_OF("bf16", __VA_ARGS__);       \
  }
#define KVMESH_D8 "%0, %1, %2, %3"
#define KVMESH_D16 KVMESH_D8 ", %4, %5, %6, %7"
#define KVMESH_D24 KVMESH_D16 ", %8, %9, %10, %11"
#define KVMESH_D32 KVMESH_D24 ", %12, %13, %14, %15"

/// d = a * b, or d += a * b where `add`. B's rows run along K.
template <Rows RowsOfA>
__device__ inline void wgmma(float (&d)[4], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("8", KVMESH_D8, "%4", "%5", "%6", "%7", KVMESH_REGISTERS4(0))
}
template <Rows RowsOfA>
__device__ inline void wgmma(float (&d)[8], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("16", KVMESH_D16, "%8", "%9", "%10", "%11", KVMESH_REGISTERS4(0),
               KVMESH_REGISTERS4(4))
}
template <Rows RowsOfA>
__device__ inline void wgmma(float (&d)[12], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("24", KVMESH_D24, "%12", "%13", "%14", "%15", KVMESH_REGISTERS4(0),
               KVMESH_REGISTERS4(4), KVMESH_REGISTERS4(8))
}
template <Rows RowsOfA>
__device__ inline void wgmma(float (&d)[16], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("32", KVMESH_D32, "%16", "%17", "%18", "%19", KVMESH_REGISTERS4(0),
               KVMESH_REGISTERS4(4), KVMESH_REGISTERS4(8), KVMESH_REGISTERS4(12))
}

#undef KVMESH_REGISTERS4
#undef KVMESH_WGMMA_OF
#undef KVMESH_WGMMA
#undef KVMESH_D8
#undef KVMESH_D16
#undef KVMESH_D24
#undef KVMESH_D32

/// Four 8x8 matrices of 16-bit elements, transposed on the way to shared memory; lane i gives the
/// address of row i % 8 of matrix i / 8. In the first form the addresses of lanes 0 .. 15 count.
__device__ inline void stmatrix_x2_trans(std::uint32_t to, std::uint32_t m0, std::uint32_t m1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(m0),
               "r"(m1)
               : "memory");
}
__device__ inline void stmatrix_x4_trans(std::uint32_t to, std::uint32_t m0, std::uint32_t m1,
                                         std::uint32_t m2, std::uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

}  // namespace kvmesh::cuda
