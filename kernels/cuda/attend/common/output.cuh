// Rows of the output, which is float32, float16 or bfloat16. The launch says which: a branch per
// row of a piece costs nothing beside its keys, and no kernel is compiled per output type.
#pragma once

#include "core/pod/row_merge.hpp"
#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/common/elements.cuh"

namespace kvmesh::cuda {

// Float8 has scales, so no output has it. A new type needs a case in OutputRow, which takes every
// type but float32 for one of 16 bits.
static_assert(sizeof kAllDtypes == 4 * sizeof(Dtype), "an output of a new type");

class OutputRow {
 public:
  /// A row that begins at element `first` of `output`.
  __device__ OutputRow(void* output, Dtype type, std::int64_t first)
      : row_(static_cast<char*>(output) + first * (type == Dtype::kFloat32 ? 4 : 2)),
        type_(type),
        has_pairs_(reinterpret_cast<std::uint64_t>(row_) % (type == Dtype::kFloat32 ? 8 : 4) == 0) {
  }

  __device__ void put(int column, float value) const {
    if (type_ == Dtype::kFloat32) {
      store_element<Dtype::kFloat32>(row_, column, value);
    } else {
      halves()[column] = static_cast<std::uint16_t>(pair_of(value, 0.0f));
    }
  }

  /// Stores two neighbours. REQUIRES: `column` is even.
  __device__ void put_pair(int column, float first, float second) const {
    if (type_ == Dtype::kFloat32) {
      put_floats(column, {first, second});
      return;
    }
    const std::uint32_t pair = pair_of(first, second);
    if (has_pairs_) {
      *reinterpret_cast<std::uint32_t*>(halves() + column) = pair;
    } else {
      halves()[column] = static_cast<std::uint16_t>(pair);
      halves()[column + 1] = static_cast<std::uint16_t>(pair >> 16);
    }
  }

  /// Stores `Count` pairs, pair(n) at column + n * Step. The row's type is looked at once, which
  /// compiles faster than `put_pair` for each.
  template <int Count, int Step, class Pair>
  __device__ __forceinline__ void put_pairs(int column, const Pair& pair) const {
    if (type_ == Dtype::kFloat32) {
#pragma unroll
      for (int n = 0; n < Count; ++n) {
        put_floats(column + n * Step, pair(n));
      }
      return;
    }
    std::uint32_t pairs[Count];
#pragma unroll
    for (int n = 0; n < Count; ++n) {
      const float2 two = pair(n);
      pairs[n] = pair_of(two.x, two.y);
    }
    if (has_pairs_) {
#pragma unroll
      for (int n = 0; n < Count; ++n) {
        *reinterpret_cast<std::uint32_t*>(halves() + column + n * Step) = pairs[n];
      }
    } else {
#pragma unroll
      for (int n = 0; n < Count; ++n) {
        halves()[column + n * Step] = static_cast<std::uint16_t>(pairs[n]);
        halves()[column + n * Step + 1] = static_cast<std::uint16_t>(pairs[n] >> 16);
      }
    }
  }

  /// True if 4 elements of 32 bits can be stored at once, at multiples of 4.
  __device__ bool has_quads() const {
    return type_ == Dtype::kFloat32 && reinterpret_cast<std::uint64_t>(row_) % 16 == 0;
  }
  __device__ void put_quad(int column, float4 values) const {
    *reinterpret_cast<float4*>(row_ + column * 4) = values;
  }

  /// True if 8 elements of 16 bits can be stored at once, at multiples of 8.
  __device__ bool has_units() const {
    return type_ != Dtype::kFloat32 && reinterpret_cast<std::uint64_t>(row_) % 16 == 0;
  }
  __device__ void put_unit(int column, uint4 pairs) const {
    *reinterpret_cast<uint4*>(halves() + column) = pairs;
  }
  /// Stores two elements of 16 bits.
  __device__ std::uint32_t pair_of(float first, float second) const {
    return type_ == Dtype::kFloat16 ? pack_pair<Dtype::kFloat16>(first, second)
                                    : pack_pair<Dtype::kBFloat16>(first, second);
  }

 private:
  __device__ void put_floats(int column, float2 pair) const {
    if (has_pairs_) {
      *reinterpret_cast<float2*>(row_ + column * 4) = pair;
    } else {
      store_element<Dtype::kFloat32>(row_, column, pair.x);
      store_element<Dtype::kFloat32>(row_, column + 1, pair.y);
    }
  }
  __device__ std::uint16_t* halves() const { return reinterpret_cast<std::uint16_t*>(row_); }

  char* row_;
  Dtype type_;
  bool has_pairs_;  // pairs of elements begin at multiples of their size
};

/// As kvmesh::lse_with_sink.
__device__ inline float lse_with_sink(float lse, float sink) {
  return kvmesh::lse_with_sink(
      lse, sink, [](float x) { return expf(x); }, [](float x) { return logf(x); });
}

__device__ inline OutputRow output_row(const AttendOutput& out, int token, int head) {
  return {out.o, out.o_type, token * out.o_token_stride + head * out.o_head_stride};
}

__device__ inline void put_lse(const AttendOutput& out, int token, int head, float lse) {
  if (out.lse == nullptr) return;
  out.lse[token * out.lse_token_stride + head * out.lse_head_stride] = lse;
}

}  // namespace kvmesh::cuda
