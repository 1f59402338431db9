// The power of two by which a row of queries is divided before it becomes float16.
#pragma once

#include <cstdint>

#include "core/pod/float8.hpp"
#include "core/pod/pair_sizes.hpp"
#include "kernels/cuda/common/elements.cuh"

namespace kvmesh::cuda {

/// 2^14 against the power of two in `largest`, and its inverse. A row of zeros is left as it is.
struct QueryScale {
  float up, down;

  __device__ explicit QueryScale(float largest) {
    // A number's exponent in its bits, so large that both factors are normal numbers.
    const std::uint32_t exponent =
        largest == 0.0f ? 141u : max(__float_as_uint(largest) >> 23, 15u);
    up = __uint_as_float((268 - exponent) << 23);
    down = __uint_as_float((exponent - 14) << 23);
  }
};

/// The largest finite size of elements of the 16-bit type `Type`, which come in pairs.
template <Dtype Type>
class LargestOfPairs {
 public:
  __device__ void add(std::uint32_t pair) { sizes_ = max_s16x2(sizes_, Sizes::of(pair)); }
  __device__ float size() const { return unpack_half<Type, 0>(Sizes::larger(sizes_)); }

 private:
  using Sizes = PairSizes<Type == Dtype::kFloat16 ? 0x7C00 : 0x7F80>;
  std::uint32_t sizes_ = Sizes::kOfZeros;
};

/// Returns the larger of a row's largest size so far and an element's, if that is finite.
__device__ inline float larger_size(float largest, float element) {
  const float size = fabsf(element);
  return is_finite_size(size) ? fmaxf(largest, size) : largest;
}

}  // namespace kvmesh::cuda
