// The tensors of one combine, as the kernels on GPUs (NCCL, peer) get them.
#pragma once

#include "kvmesh/combine.hpp"

namespace kvmesh::cuda {

/// Strides count elements. n tokens and h heads are this rank's share.
struct CombineTensors {
  const float* o;    // [tokens, heads, dim], last dimension contiguous
  const float* lse;  // [tokens, heads]
  std::int64_t o_token_stride, o_head_stride, lse_token_stride, lse_head_stride;

  void* out_o;     // [n, h, dim] of out_dtype, last dimension contiguous
  float* out_lse;  // [n, h], or null
  std::int64_t out_token_stride, out_head_stride, out_lse_token_stride, out_lse_head_stride;
  Dtype out_dtype;

  constexpr const float* o_row(std::int64_t token, std::int64_t head) const {
    return o + token * o_token_stride + head * o_head_stride;
  }
  constexpr float lse_of(std::int64_t token, std::int64_t head) const {
    return lse[token * lse_token_stride + head * lse_head_stride];
  }
  /// The first element of a row of out_o, and the element of out_lse.
  constexpr std::int64_t out_at(std::int64_t token, std::int64_t head) const {
    return token * out_token_stride + head * out_head_stride;
  }
  constexpr std::int64_t out_lse_at(std::int64_t token, std::int64_t head) const {
    return token * out_lse_token_stride + head * out_lse_head_stride;
  }
};

inline CombineTensors combine_tensors(const Partial& mine, const CombineOutput& output) {
  return {.o = static_cast<const float*>(mine.o.data),
          .lse = static_cast<const float*>(mine.lse.data),
          .o_token_stride = mine.o.stride(0),
          .o_head_stride = mine.o.stride(1),
          .lse_token_stride = mine.lse.stride(0),
          .lse_head_stride = mine.lse.stride(1),
          .out_o = output.o.data,
          .out_lse = static_cast<float*>(output.lse.data),
          .out_token_stride = output.o.stride(0),
          .out_head_stride = output.o.stride(1),
          .out_lse_token_stride = output.lse.stride(0),
          .out_lse_head_stride = output.lse.stride(1),
          .out_dtype = output.o.dtype};
}

}  // namespace kvmesh::cuda
