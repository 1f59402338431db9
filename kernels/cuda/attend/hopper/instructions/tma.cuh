// The copy engine (sm_90): boxes of tensors from global to shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/hopper/instructions/tensor_map.hpp"

namespace kvmesh::cuda {

/// Copies a box, and counts its bytes at `barrier`. Elements outside of the tensor become 0 and are
/// counted. `policy` is an L2 cache policy.
__device__ inline void cp_async_bulk_tensor_5d(std::uint32_t to, const TensorMap& map,
                                               std::uint32_t barrier, std::uint64_t policy, int c0,
                                               int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy)
      : "memory");
}

/// Prefetches a box into L2.
__device__ inline void prefetch_tensor_5d(const TensorMap& map, int c0, int c1, int c2, int c3,
                                          int c4) {
  asm volatile(
      "cp.async.bulk.prefetch.tensor.5d.L2.global.tile [%0, {%1, %2, %3, %4, %5}];" ::"l"(&map),
      "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

/// The same for neighbouring bytes, a multiple of 16 that begins at one.
__device__ inline void prefetch_bulk(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

__device__ inline void prefetch_tensormap(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// L2 policies: for data that is read once, as decode reads keys and values; and for data that is
/// read again.
constexpr std::uint64_t kEvictFirst = 0x12F0000000000000;
constexpr std::uint64_t kEvictNormal = 0x1000000000000000;

/// Makes this thread's writes to shared memory visible to the tensor cores and the copy engine,
/// after a barrier.
__device__ inline void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace kvmesh::cuda
