// Rows of exact sums on a GPU: their memory, and the sums of one of them in a warp's registers.
//
// Constants of the kernel (namespace kvmesh): kDimV.
#pragma once

#include "core/cuda/warp.cuh"
#include "core/pod/exact_row.hpp"

namespace kvmesh::cuda {

constexpr int kExactDim = static_cast<int>(exact_dim(kDimV));
constexpr int kExactColumns = (kExactDim + 31) / 32;  // of a lane: lane, lane + 32, ...

/// A row in memory, as kvmesh::ExactRows has it.
struct ExactRowPlace {
  __device__ ExactRowPlace(void* rows, std::int64_t row)
      : head(reinterpret_cast<ExactRowHead*>(static_cast<char*>(rows) +
                                             row * exact_row_bytes(kDimV))),
        high(reinterpret_cast<std::int64_t*>(head + 1)),
        low(high + kExactDim) {}

  ExactRowHead* head;
  std::int64_t* high;  // [kExactDim]
  std::int64_t* low;   // [kExactDim]
};

/// The sums of a row. All lanes have the head alike, each lane has its columns.
class ExactRowSums {
 public:
  ExactRowHead head = kNoExactKeys;

  /// Adds o * 2^exponent of the columns, a chunk's sums.
  __device__ void add_outputs(const float (&o)[kExactColumns], std::int32_t exponent) {
    int bits = 0;
#pragma unroll
    for (int c = 0; c < kExactColumns; ++c) bits = max(bits, __float_as_int(fabsf(o[c])));
    bits = __reduce_max_sync(kAllLanes, bits);  // infinity and the NaNs are above all numbers
    if (bits == 0) return;
    if (bits >= kInfinityBits) return raise(kNotFinite);
    const std::int32_t bin = bin_of(exponent + bound_of(bits));
    raise(bin);
#pragma unroll
    for (int c = 0; c < kExactColumns; ++c) add_term(sums_[c], head.o_bin, o[c], exponent, bin);
  }

  /// Adds the keys of a row in memory.
  __device__ void merge(const ExactRowPlace& from) {
    const ExactRowHead other = *from.head;
    merge_sums(head, other);
    raise(other.o_bin);
#pragma unroll
    for (int c = 0; c < kExactColumns; ++c) {
      const int column = column_of(c);
      if (column >= kExactDim) continue;
      const ExactSum sum = raised({from.high[column], from.low[column]}, other.o_bin, head.o_bin);
      sums_[c].high += sum.high;
      sums_[c].low += sum.low;
    }
  }

  __device__ void store(const ExactRowPlace& to) const {
    if (threadIdx.x % 32 == 0) *to.head = head;
#pragma unroll
    for (int c = 0; c < kExactColumns; ++c) {
      const int column = column_of(c);
      if (column >= kExactDim) continue;
      to.high[column] = sums_[c].high;
      to.low[column] = sums_[c].low;
    }
  }

 private:
  __device__ static int column_of(int c) { return c * 32 + threadIdx.x % 32; }

  __device__ void raise(std::int32_t bin) {
    if (bin <= head.o_bin) return;
#pragma unroll
    for (int c = 0; c < kExactColumns; ++c) sums_[c] = raised(sums_[c], head.o_bin, bin);
    head.o_bin = bin;
  }

  ExactSum sums_[kExactColumns] = {};
};

}  // namespace kvmesh::cuda
