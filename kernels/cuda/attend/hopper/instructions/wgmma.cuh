// The tensor cores of sm_90a: products of a warpgroup (4 warps), 64 rows of A by N columns of B,
// over 16 elements of K. Operands are descriptions of shared memory (image.hpp); both are of
// kProductType, which depends on a constant of the kernel, kPoolType.
//
// Accumulators, with g = lane / 4, t = lane % 4 and w the warp of the group: d[4 * j + i] is row
// 16 * w + g + 8 * (i / 2), column 8 * j + 2 * t + i % 2.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/hopper/instructions/image.hpp"
#include "kernels/cuda/common/elements.cuh"

namespace kvmesh::cuda {

constexpr bool kIsFloat8 = kPoolType == Dtype::kFloat8E4M3;
constexpr int kElementBytes = kIsFloat8 ? 1 : 2;
/// The type of products, by that of the pages: float16 has every float8 number.
constexpr Dtype kProductType = kIsFloat8 ? Dtype::kFloat16 : kPoolType;

/// Required before the first product after other instructions have accessed its registers.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most `Pending` groups are under way. Tie the accumulators to it.
template <int Pending>
__device__ inline void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// Keeps the compiler from reading these registers before the wait above this call.
template <int Count>
__device__ inline void wgmma_tie(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Sets the registers per thread from here on, for a whole warpgroup that has more (`dec`) or fewer
/// (`inc`).
template <int Count>
__device__ inline void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ inline void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

/// The direction of an operand's rows in shared memory: rows of keys and queries run along K, those
/// of values across it.
enum class Rows : int { kAlongK = 0, kAcrossK = 1 };

// The widths differ in their lists of registers alone. Operand numbers: the accumulators, then a,
// b, `add` and how the rows of A and B run.
#define KVMESH_REGISTERS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define KVMESH_REGISTERS16(i)                                               \
  KVMESH_REGISTERS4(i), KVMESH_REGISTERS4(i + 4), KVMESH_REGISTERS4(i + 8), \
      KVMESH_REGISTERS4(i + 12)
#define KVMESH_WGMMA_OF(TYPE, N, D, A, B, ADD, ROWS, ...)                                    \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                   \
               ", 0;\n"                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" D "}, " A \
               ", " B ", add, 1, 1, " ROWS ";\n}"                                            \
               : __VA_ARGS__                                                                 \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(RowsOfA)), \
                 "n"(static_cast<int>(RowsOfB)))
#define KVMESH_WGMMA(...)                          \
  if constexpr (kProductType == Dtype::kFloat16) { \
    KVMESH_WGMMA_OF("f16", __VA_ARGS__);           \
  } else {                                         \
    KVMESH_WGMMA_OF("bf16", __VA_ARGS__);          \
  }
#define KVMESH_D8 "%0, %1, %2, %3"
#define KVMESH_D16 KVMESH_D8 ", %4, %5, %6, %7"
#define KVMESH_D24 KVMESH_D16 ", %8, %9, %10, %11"
#define KVMESH_D32 KVMESH_D24 ", %12, %13, %14, %15"
#define KVMESH_D40 KVMESH_D32 ", %16, %17, %18, %19"
#define KVMESH_D48 KVMESH_D40 ", %20, %21, %22, %23"
#define KVMESH_D56 KVMESH_D48 ", %24, %25, %26, %27"
#define KVMESH_D64 KVMESH_D56 ", %28, %29, %30, %31"
#define KVMESH_D72 KVMESH_D64 ", %32, %33, %34, %35"
#define KVMESH_D80 KVMESH_D72 ", %36, %37, %38, %39"
#define KVMESH_D88 KVMESH_D80 ", %40, %41, %42, %43"
#define KVMESH_D96 KVMESH_D88 ", %44, %45, %46, %47"
#define KVMESH_D104 KVMESH_D96 ", %48, %49, %50, %51"
#define KVMESH_D112 KVMESH_D104 ", %52, %53, %54, %55"
#define KVMESH_D120 KVMESH_D112 ", %56, %57, %58, %59"
#define KVMESH_D128 KVMESH_D120 ", %60, %61, %62, %63"
#define KVMESH_D136 KVMESH_D128 ", %64, %65, %66, %67"
#define KVMESH_D144 KVMESH_D136 ", %68, %69, %70, %71"
#define KVMESH_D152 KVMESH_D144 ", %72, %73, %74, %75"
#define KVMESH_D160 KVMESH_D152 ", %76, %77, %78, %79"
#define KVMESH_D168 KVMESH_D160 ", %80, %81, %82, %83"
#define KVMESH_D176 KVMESH_D168 ", %84, %85, %86, %87"
#define KVMESH_D184 KVMESH_D176 ", %88, %89, %90, %91"
#define KVMESH_D192 KVMESH_D184 ", %92, %93, %94, %95"
#define KVMESH_D200 KVMESH_D192 ", %96, %97, %98, %99"
#define KVMESH_D208 KVMESH_D200 ", %100, %101, %102, %103"
#define KVMESH_D216 KVMESH_D208 ", %104, %105, %106, %107"
#define KVMESH_D224 KVMESH_D216 ", %108, %109, %110, %111"
#define KVMESH_D232 KVMESH_D224 ", %112, %113, %114, %115"
#define KVMESH_D240 KVMESH_D232 ", %116, %117, %118, %119"
#define KVMESH_D248 KVMESH_D240 ", %120, %121, %122, %123"
#define KVMESH_D256 KVMESH_D248 ", %124, %125, %126, %127"

/// d = a * b, or d += a * b where `add`.
template <Rows RowsOfA, Rows RowsOfB = Rows::kAlongK>
__device__ inline void wgmma(float (&d)[4], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("8", KVMESH_D8, "%4", "%5", "%6", "%7, %8", KVMESH_REGISTERS4(0))
}
template <Rows RowsOfA, Rows RowsOfB = Rows::kAlongK>
__device__ inline void wgmma(float (&d)[8], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("16", KVMESH_D16, "%8", "%9", "%10", "%11, %12", KVMESH_REGISTERS4(0),
               KVMESH_REGISTERS4(4))
}
template <Rows RowsOfA, Rows RowsOfB = Rows::kAlongK>
__device__ inline void wgmma(float (&d)[16], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("32", KVMESH_D32, "%16", "%17", "%18", "%19, %20", KVMESH_REGISTERS4(0),
               KVMESH_REGISTERS4(4), KVMESH_REGISTERS4(8), KVMESH_REGISTERS4(12))
}

template <Rows RowsOfA, Rows RowsOfB = Rows::kAlongK>
__device__ inline void wgmma(float (&d)[32], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("64", KVMESH_D64, "%32", "%33", "%34", "%35, %36", KVMESH_REGISTERS16(0),
               KVMESH_REGISTERS16(16))
}
template <Rows RowsOfA, Rows RowsOfB = Rows::kAlongK>
__device__ inline void wgmma(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("128", KVMESH_D128, "%64", "%65", "%66", "%67, %68", KVMESH_REGISTERS16(0),
               KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32), KVMESH_REGISTERS16(48))
}
template <Rows RowsOfA, Rows RowsOfB = Rows::kAlongK>
__device__ inline void wgmma(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add) {
  KVMESH_WGMMA("256", KVMESH_D256, "%128", "%129", "%130", "%131, %132", KVMESH_REGISTERS16(0),
               KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32), KVMESH_REGISTERS16(48),
               KVMESH_REGISTERS16(64), KVMESH_REGISTERS16(80), KVMESH_REGISTERS16(96),
               KVMESH_REGISTERS16(112))
}

// A from registers, as the accumulators of scores pack into it: a[i] is row g + 8 * (i % 2),
// elements 8 * (i / 2) + 2 * t and the one after it. B's rows run across K.
#define KVMESH_WGMMA_REGISTERS_OF(TYPE, N, D, A, B, ...)                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" D "}, {" A \
               "}, " B ", 1, 1, 1, 1;"                                                        \
               : __VA_ARGS__                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define KVMESH_WGMMA_REGISTERS(...)                 \
  if constexpr (kProductType == Dtype::kFloat16) {  \
    KVMESH_WGMMA_REGISTERS_OF("f16", __VA_ARGS__);  \
  } else {                                          \
    KVMESH_WGMMA_REGISTERS_OF("bf16", __VA_ARGS__); \
  }

/// d += a * b.
__device__ inline void wgmma_add(float (&d)[24], const std::uint32_t (&a)[4], std::uint64_t b) {
  KVMESH_WGMMA_REGISTERS("48", KVMESH_D48, "%24, %25, %26, %27", "%28", KVMESH_REGISTERS16(0),
                         KVMESH_REGISTERS4(16), KVMESH_REGISTERS4(20));
}
__device__ inline void wgmma_add(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b) {
  KVMESH_WGMMA_REGISTERS("64", KVMESH_D64, "%32, %33, %34, %35", "%36", KVMESH_REGISTERS16(0),
                         KVMESH_REGISTERS16(16));
}
__device__ inline void wgmma_add(float (&d)[48], const std::uint32_t (&a)[4], std::uint64_t b) {
  KVMESH_WGMMA_REGISTERS("96", KVMESH_D96, "%48, %49, %50, %51", "%52", KVMESH_REGISTERS16(0),
                         KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32));
}
__device__ inline void wgmma_add(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
  KVMESH_WGMMA_REGISTERS("128", KVMESH_D128, "%64, %65, %66, %67", "%68", KVMESH_REGISTERS16(0),
                         KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32), KVMESH_REGISTERS16(48));
}

__device__ inline void wgmma_add(float (&d)[96], const std::uint32_t (&a)[4], std::uint64_t b) {
  KVMESH_WGMMA_REGISTERS("192", KVMESH_D192, "%96, %97, %98, %99", "%100", KVMESH_REGISTERS16(0),
                         KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32), KVMESH_REGISTERS16(48),
                         KVMESH_REGISTERS16(64), KVMESH_REGISTERS16(80));
}
__device__ inline void wgmma_add(float (&d)[112], const std::uint32_t (&a)[4], std::uint64_t b) {
  KVMESH_WGMMA_REGISTERS("224", KVMESH_D224, "%112, %113, %114, %115", "%116",
                         KVMESH_REGISTERS16(0), KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32),
                         KVMESH_REGISTERS16(48), KVMESH_REGISTERS16(64), KVMESH_REGISTERS16(80),
                         KVMESH_REGISTERS16(96));
}
__device__ inline void wgmma_add(float (&d)[128], const std::uint32_t (&a)[4], std::uint64_t b) {
  KVMESH_WGMMA_REGISTERS("256", KVMESH_D256, "%128, %129, %130, %131", "%132",
                         KVMESH_REGISTERS16(0), KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32),
                         KVMESH_REGISTERS16(48), KVMESH_REGISTERS16(64), KVMESH_REGISTERS16(80),
                         KVMESH_REGISTERS16(96), KVMESH_REGISTERS16(112));
}

/// d += a * b for all dims of an image, from its first on, by a product for each part of them.
template <KvImage Image, int Part = 0>
__device__ __forceinline__ void wgmma_add_parts(float (&d)[Image.dim / 2],
                                                const std::uint32_t (&a)[4], std::uint64_t b) {
  constexpr int begin = Image.part_begin(Part), end = Image.part_end(Part);
  wgmma_add(*reinterpret_cast<float(*)[(end - begin) / 2]>(d + begin / 2), a,
            b + Image.further(begin));
  if constexpr (end < Image.dim) wgmma_add_parts<Image, Part + 1>(d, a, b);
}

// The same in float16 whatever the pool's type, with B's rows along K.
#define KVMESH_WGMMA_FLOAT16(N, D, A, B, ADD, ...)                                          \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                  \
               ", 0;\n"                                                                     \
               "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.f16.f16 {" D "}, {" A "}, " B \
               ", add, 1, 1, 0;\n}"                                                         \
               : __VA_ARGS__                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)))

/// d = a * b, or d += a * b where `add`.
__device__ inline void wgmma_float16(float (&d)[4], const std::uint32_t (&a)[4], std::uint64_t b,
                                     bool add) {
  KVMESH_WGMMA_FLOAT16("8", KVMESH_D8, "%4, %5, %6, %7", "%8", "%9", KVMESH_REGISTERS4(0));
}
__device__ inline void wgmma_float16(float (&d)[8], const std::uint32_t (&a)[4], std::uint64_t b,
                                     bool add) {
  KVMESH_WGMMA_FLOAT16("16", KVMESH_D16, "%8, %9, %10, %11", "%12", "%13", KVMESH_REGISTERS4(0),
                       KVMESH_REGISTERS4(4));
}
__device__ inline void wgmma_float16(float (&d)[16], const std::uint32_t (&a)[4], std::uint64_t b,
                                     bool add) {
  KVMESH_WGMMA_FLOAT16("32", KVMESH_D32, "%16, %17, %18, %19", "%20", "%21", KVMESH_REGISTERS16(0));
}
__device__ inline void wgmma_float16(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b,
                                     bool add) {
  KVMESH_WGMMA_FLOAT16("64", KVMESH_D64, "%32, %33, %34, %35", "%36", "%37", KVMESH_REGISTERS16(0),
                       KVMESH_REGISTERS16(16));
}
__device__ inline void wgmma_float16(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b,
                                     bool add) {
  KVMESH_WGMMA_FLOAT16("128", KVMESH_D128, "%64, %65, %66, %67", "%68", "%69",
                       KVMESH_REGISTERS16(0), KVMESH_REGISTERS16(16), KVMESH_REGISTERS16(32),
                       KVMESH_REGISTERS16(48));
}

#undef KVMESH_REGISTERS4
#undef KVMESH_REGISTERS16
#undef KVMESH_WGMMA_FLOAT16
#undef KVMESH_WGMMA_REGISTERS
#undef KVMESH_WGMMA_REGISTERS_OF
#undef KVMESH_WGMMA_OF
#undef KVMESH_WGMMA
#undef KVMESH_D8
#undef KVMESH_D16
#undef KVMESH_D24
#undef KVMESH_D32
#undef KVMESH_D40
#undef KVMESH_D48
#undef KVMESH_D56
#undef KVMESH_D64
#undef KVMESH_D72
#undef KVMESH_D80
#undef KVMESH_D88
#undef KVMESH_D96
#undef KVMESH_D104
#undef KVMESH_D112
#undef KVMESH_D120
#undef KVMESH_D128
#undef KVMESH_D136
#undef KVMESH_D144
#undef KVMESH_D152
#undef KVMESH_D160
#undef KVMESH_D168
#undef KVMESH_D176
#undef KVMESH_D184
#undef KVMESH_D192
#undef KVMESH_D200
#undef KVMESH_D208
#undef KVMESH_D216
#undef KVMESH_D224
#undef KVMESH_D232
#undef KVMESH_D240
#undef KVMESH_D248
#undef KVMESH_D256

/// Stores four 8x8 matrices of 16-bit elements to shared memory. Lane i gives the address of row i
/// % 8 of matrix i / 8, and has elements 2 * t and the one after it of row g of each.
__device__ inline void stmatrix_x4(std::uint32_t to, std::uint32_t m0, std::uint32_t m1,
                                   std::uint32_t m2, std::uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

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
