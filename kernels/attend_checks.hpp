// Checks of the tensors that attend_partial takes, on every device.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>

#include "kernels/pool_checks.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// @throws InvalidArgument if the scale makes every score NaN or infinite.
inline void check_scale(const std::optional<float>& scale) {
  require(!scale || std::isfinite(*scale), "attention: the scale is {}, must be finite",
          scale.value_or(0));
}

/// The keys of a tile of every kernel divide this many.
inline constexpr std::int64_t kSplitGrain = 128;

/// @throws InvalidArgument unless pieces of `tokens` keys are whole pages and whole tiles; 0 is no
/// fixed split.
inline void check_fixed_split(std::int64_t tokens, int page_size) {
  const std::int64_t unit = std::lcm(kSplitGrain, std::int64_t{page_size});
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  require(
      tokens >= 0 && tokens <= kMost && tokens % unit == 0,
      "plan: fixed_split_tokens is {}, must be 0 or a multiple of {} (of {} tokens, and of pages "
      "of {}) up to {}",
      tokens, unit, kSplitGrain, page_size, kMost);
}

/// `rows` is [tokens, q_heads, dim].
inline void check_attend_rows(const char* what, const ConstTensorView& rows, std::int64_t tokens,
                              std::int64_t q_heads, int dim,
                              const char* operation = "attend_partial") {
  require(rows.dims == 3 && rows.size(0) == tokens && rows.size(1) == q_heads &&
              rows.size(2) == dim && has_contiguous_rows(rows),
          "{}: {} must be [{}, {}, {}] (tokens, query heads, dim) with a contiguous last "
          "dimension, is {}",
          operation, what, tokens, q_heads, dim, rows);
  check_tensor(what, rows, 3);
}

/// @throws InvalidArgument unless `sinks` is [q_heads] in float32, or empty.
inline void check_sinks(const AttentionShape& shape, const ConstTensorView& sinks) {
  if (sinks.empty()) return;
  require(sinks.dims == 1 && sinks.size(0) == shape.q_heads && sinks.dtype == Dtype::kFloat32 &&
              sinks.stride(0) == 1,
          "attend_partial: sinks must be [{}] (query heads) in float32, contiguous, is {}",
          shape.q_heads, sinks);
  check_tensor("attend_partial: sinks", sinks, 1);
}

/// The outputs of attention: a partial or, where one rank holds all keys, the final rows.
///
/// `o`    [tokens, q_heads, v_dim], any dtype.
/// `lse`  [tokens, q_heads] float32; an empty view if not needed.
struct AttendedRows {
  TensorView o{};
  TensorView lse{};
};

inline void check_attended_lse(const AttentionShape& shape, std::int64_t tokens,
                               const TensorView& lse) {
  require(lse.dims == 2 && lse.size(0) == tokens && lse.size(1) == shape.q_heads &&
              lse.dtype == Dtype::kFloat32,
          "attend_partial: lse must be [{}, {}] in float32, is {}", tokens, shape.q_heads, lse);
  check_output_tensor("attend_partial: lse", lse, 2);
}

inline void check_attended_rows(const AttentionShape& shape, std::int64_t tokens,
                                const AttendedRows& out) {
  check_attend_rows("o", out.o, tokens, shape.q_heads, shape.v_dim);
  check_output_tensor("attend_partial: o", out.o, 3);
  if (!out.lse.empty()) check_attended_lse(shape, tokens, out.lse);
}

/// `out` holds the partials of [tokens, q_heads] rows. With no tokens its views may have no data.
inline void check_attend_partial(const AttentionShape& shape, std::int64_t tokens,
                                 const Partial& out) {
  require(out.o.dtype == Dtype::kFloat32 && out.lse.dtype == Dtype::kFloat32,
          "attend_partial: partials are float32, o is {}, lse {}", out.o, out.lse);
  check_attended_rows(shape, tokens, {out.o, {}});
  check_attended_lse(shape, tokens, out.lse);
}

/// `max_page` is the highest page that the plan reads. @throws InvalidArgument
inline void check_attend_inputs(const AttentionShape& shape, std::int64_t tokens,
                                std::int32_t max_page, const ConstTensorView& q,
                                const ConstKvPool& pool) {
  check_pool("attend_partial", pool);
  require(pool.k.size(1) == shape.kv_heads && pool.k.size(2) == shape.page_size &&
              pool.k.size(3) == shape.k_dim && pool.v.size(3) == shape.v_dim,
          "attend_partial: the plan is for {} kv heads, pages of {}, dims {} and {}; the pool is "
          "{} and {}",
          shape.kv_heads, shape.page_size, shape.k_dim, shape.v_dim, pool.k, pool.v);
  require(max_page < pool.k.size(0), "attend_partial: the plan reads page {} of a pool of {}",
          max_page, pool.k.size(0));
  check_attend_rows("q", q, tokens, shape.q_heads, shape.k_dim);
}

}  // namespace kvmesh
