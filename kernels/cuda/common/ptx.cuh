// Instructions that C++ cannot express: one per function, which is named after it.
#pragma once

#include <cstdint>

#include "core/cuda/device/dependent_launch.cuh"
#include "core/cuda/device/half_pairs.cuh"

namespace kvmesh::cuda {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Returns the same value, but hides it from the compiler, which then computes values derived from
/// it again where they are needed, instead of keeping them in registers through a loop.
__device__ inline int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ inline const char* opaque(const char* value) {
  asm volatile("" : "+l"(value));
  return value;
}

/// Returns the same value, which the compiler then computes here, not later where it is used.
__device__ inline float computed_here(float value) {
  asm volatile("" : "+f"(value));
  return value;
}

/// Copies 16 bytes from global to shared memory: reads `bytes` of them and fills the rest with 0.
/// Prefetches the whole 128-byte line.
__device__ inline void cp_async_16_zfill(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}

/// The same without the prefetch of the line.
__device__ inline void cp_async_16_zfill_alone(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

/// The same of 4 bytes that neighbours read again: of them `bytes` are read.
__device__ inline void cp_async_4_zfill(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

/// Copies 8 bytes that neighbours read again, so they stay in L1.
__device__ inline void cp_async_8_cached(std::uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}

__device__ inline void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `Pending` of this thread's groups are incomplete.
template <int Pending>
__device__ inline void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// Returns the counter's value and increments it; 0 follows `last`.
__device__ inline std::uint32_t atom_inc_relaxed_gpu(std::uint32_t* at, std::uint32_t last) {
  std::uint32_t old;
  asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(at), "r"(last)
               : "memory");
  return old;
}

/// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void ldmatrix_x4(std::uint32_t (&to)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

/// Two of them: lanes 0 .. 15 give the addresses.
__device__ inline void ldmatrix_x2(std::uint32_t (&to)[2], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(from)
               : "memory");
}

__device__ inline void ldmatrix_x4_trans(std::uint32_t (&to)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

/// The transpose of an 8x8 matrix of 16-bit elements in a warp's registers, as ldmatrix leaves one.
__device__ inline std::uint32_t movmatrix_trans(std::uint32_t matrix) {
  std::uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
  return transposed;
}

__device__ inline void st_shared_v4(std::uint32_t to, const uint4& value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

__device__ inline uint4 ld_shared_v4(std::uint32_t from) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
}

__device__ inline std::uint32_t ld_shared_u32(std::uint32_t from) {
  std::uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}

/// c [16, 8] += a [16, 16] * b [16, 8].
__device__ inline void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void mma_m16n8k16_f16(float (&c)[4], const std::uint32_t (&a)[4],
                                        std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two float8 elements, the lower (`Half` 0) or upper 16 bits of `four`.
template <int Half>
__device__ inline std::uint32_t cvt_rn_f16x2_e4m3x2(std::uint32_t four) {
  std::uint32_t pair;
  if constexpr (Half == 0) {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}"
        : "=r"(pair)
        : "r"(four));
  } else {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, high;\n}"
        : "=r"(pair)
        : "r"(four));
  }
  return pair;
}

/// The larger signed numbers of two pairs of 16 bits (sm_90).
__device__ inline std::uint32_t max_s16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t larger;
  asm("max.s16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

/// The larger one; a NaN if either is one.
__device__ inline float max_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

/// Log 2; -inf for 0 and subnormal numbers, NaN for negative ones.
__device__ inline float lg2_approx(float x) {
  float value;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

/// 2^x; 0 for -inf, NaN for NaN; relative error 2^-22.
__device__ inline float ex2_approx(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

}  // namespace kvmesh::cuda
