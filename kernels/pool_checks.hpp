// Checks of a pool that all kernels share.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/tensors/tensor_check.hpp"
#include "kvmesh/page_format.hpp"

namespace kvmesh {

/// `plane` is [pages, heads, page_size, elements].
inline void check_plane(const char* operation, const ConstTensorView& plane) {
  check_tensor(operation, plane, 4, Elements::kAny);
  require(has_contiguous_rows(plane), "{}: the last dimension of {} must be contiguous", operation,
          plane);
}

/// `planes` are one layer's, to be written.
inline void check_planes(const char* operation, const PagePlanes& planes) {
  for (const TensorView& plane : planes) {
    check_output_tensor(operation, plane, 4, Elements::kAny);
    check_plane(operation, plane);
    require(plane.size(0) == planes[0].size(0) && plane.size(1) == planes[0].size(1) &&
                plane.size(2) == planes[0].size(2),
            "{}: planes {} and {} must have the same pages, heads and tokens", operation, plane,
            planes[0]);
  }
}

/// `scale` is that of `rows` [pages, kv_heads, page_size, dim].
inline void check_scale(const char* operation, const ConstTensorView& rows,
                        const BasicRowScale<ConstTensorView>& scale) {
  const ConstTensorView& each = scale.per_token;
  require(info_of(rows.dtype).has_scales || (scale.number == 1 && each.empty()),
          "{}: the elements of {} have no scale", operation, rows);
  require(scale.number > 0 && std::isfinite(scale.number), "{}: a scale of {}", operation,
          scale.number);
  if (each.empty()) return;
  check_plane(operation, each);
  require(each.dtype == Dtype::kFloat32 && each.size(0) == rows.size(0) &&
              each.size(1) == rows.size(1) && each.size(2) == rows.size(2) && each.size(3) == 1,
          "{}: the scales {} must be float32 [{}, {}, {}, 1]", operation, each, rows.size(0),
          rows.size(1), rows.size(2));
}

/// `k` and `v` of `pool` are [pages, kv_heads, page_size, dim].
inline void check_pool(const char* operation, const ConstKvPool& pool) {
  const ConstTensorView &k = pool.k, &v = pool.v;
  require(k.dims == 4 && v.dims == 4 && k.size(0) == v.size(0) && k.size(1) == v.size(1) &&
              k.size(2) == v.size(2) && k.dtype == v.dtype,
          "{}: k pool {} and v pool {} must be [pages, kv_heads, page_size, dim] of one dtype",
          operation, k, v);
  check_plane(operation, k);
  check_plane(operation, v);
  check_scale(operation, k, pool.k_scale);
  check_scale(operation, v, pool.v_scale);
  require(!pool.is_latent() || (k.strides == v.strides && v.size(3) <= k.size(3)),
          "{}: the values {} of a latent pool must be the first elements of its rows {}", operation,
          v, k);
}

/// True if `per_token` has one scale for all tokens of a head. append reads such scales, and writes
/// others.
inline bool is_per_head(const ConstTensorView& per_token) {
  return !per_token.empty() && per_token.stride(0) == 0 && per_token.stride(2) == 0;
}

/// `pool` is written: no two of its elements share memory.
inline void check_no_overlap(const char* operation, const KvPool& pool) {
  check_output_tensor(operation, pool.k, 4, Elements::kAny);
  check_output_tensor(operation, pool.v, 4, Elements::kAny);
  for (const auto* scale : {&pool.k_scale, &pool.v_scale}) {
    if (scale->per_token.empty() || is_per_head(scale->per_token)) continue;
    check_output_tensor(operation, scale->per_token, 4);
  }
}

inline void check_writable_pool(const char* operation, const KvPool& pool) {
  check_pool(operation, pool);
  check_no_overlap(operation, pool);
}

/// `fresh` has the keys or values of `tokens` new tokens for a pool.
inline void check_new_rows(const char* what, const ConstTensorView& fresh,
                           const ConstTensorView& pool, std::int64_t tokens) {
  require(fresh.dims == 3 && fresh.size(0) == tokens && fresh.size(1) == pool.size(1) &&
              fresh.size(2) == pool.size(3),
          "append: {} must be [{}, {}, {}] (tokens, kv heads, dim), is {}", what, tokens,
          pool.size(1), pool.size(3), fresh);
  check_tensor(what, fresh, 3);
  require(has_contiguous_rows(fresh), "append: {}'s last dimension must be contiguous", what);
}

/// Keys and values of `tokens` new tokens; for a latent pool keys alone.
inline void check_new_tokens(const ConstTensorView& k, const ConstTensorView& v,
                             const ConstKvPool& pool, std::int64_t tokens) {
  check_new_rows("k", k, pool.k, tokens);
  if (pool.is_latent()) {
    require(v.empty(), "append: latent pages take k alone, v is {}", v);
    return;
  }
  check_new_rows("v", v, pool.v, tokens);
  require(k.dtype == v.dtype, "append: k is {} and v is {}: their dtypes must be equal", k, v);
}

}  // namespace kvmesh
