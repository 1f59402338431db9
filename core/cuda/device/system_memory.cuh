// Accesses to memory that other GPUs and other processes use at the same time: one instruction a
// function, named by order, scope and type.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// 16 bytes as one value: another reader sees all of them or none.
__device__ inline void st_relaxed_sys_b128(void* to, const uint4& value) {
  asm volatile(
      "{\n"
      ".reg .b64 low, high;\n"
      ".reg .b128 both;\n"
      "mov.b64 low, {%1, %2};\n"
      "mov.b64 high, {%3, %4};\n"
      "mov.b128 both, {low, high};\n"
      "st.relaxed.sys.global.b128 [%0], both;\n"
      "}" ::"l"(to),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
      : "memory");
}

__device__ inline uint4 ld_relaxed_sys_b128(const void* from) {
  uint4 value;
  asm volatile(
      "{\n"
      ".reg .b64 low, high;\n"
      ".reg .b128 both;\n"
      "ld.relaxed.sys.global.b128 both, [%4];\n"
      "mov.b128 {low, high}, both;\n"
      "mov.b64 {%0, %1}, low;\n"
      "mov.b64 {%2, %3}, high;\n"
      "}"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(from)
      : "memory");
  return value;
}

__device__ inline void st_relaxed_sys_u32(void* to, std::uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ inline std::uint32_t ld_relaxed_sys_u32(const void* from) {
  std::uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

/// Earlier writes are visible to any reader of the stored value.
__device__ inline void st_release_sys_u32(void* to, std::uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/// Nanoseconds on a clock that all SMs share.
__device__ inline std::uint64_t globaltimer() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

}  // namespace kvmesh::cuda
