#include "kernels/exact_attention.hpp"

#include "core/pod/exact_bins.hpp"

namespace kvmesh {

std::int64_t longest_exact_sequence(int page_size) {
  return kMostExactTerms * chunk_keys(page_size);
}

bool gpu_has_exact_attention(Dtype pages, int k_dim, int v_dim) {
  constexpr int kMostKeyDims = 576, kMostValueDims = 512;  // that shared memory and registers hold
  return info_of(pages).bits == 16 && k_dim % 8 == 0 && v_dim % 8 == 0 && k_dim <= kMostKeyDims &&
         v_dim <= kMostValueDims;
}

}  // namespace kvmesh
