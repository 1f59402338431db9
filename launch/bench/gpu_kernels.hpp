// The GPU's ceilings and the data. Asynchronous on the stream; may be captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "launch/bench/fill_pattern.hpp"

namespace kvmesh::bench {

/// REQUIRES: `size_bytes` is a multiple of 2; `data` is aligned to 4.
void launch_fill(void* data, std::size_t size_bytes, FillPattern pattern, unsigned seed,
                 cudaStream_t stream);

/// Bytes of `size_bytes` that launch_read reads: whole chunks of a block.
std::size_t bytes_of_read(std::size_t size_bytes);
/// Streams through memory: 16-byte loads, 8 in flight per thread. Blocks take chunks in turn.
void launch_read(const void* data, std::size_t size_bytes, int blocks, unsigned* sink,
                 cudaStream_t stream);
/// REQUIRES: `size_bytes` and both addresses are multiples of 16.
void launch_copy(void* to, const void* from, std::size_t size_bytes, cudaStream_t stream);

/// Computes multiply-adds from registers for about a millisecond: on the tensor cores by mma.sync
/// m16n8k16 with float32 sums for float16 and bfloat16, else plain float32 ones. Returns the
/// operations, two per multiply-add.
double launch_multiply(Dtype dtype, int multiprocessors, unsigned* sink, cudaStream_t stream);

}  // namespace kvmesh::bench
