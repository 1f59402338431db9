// Parameters of the kernels that write to a pool. One text for the host and for NVRTC.
#pragma once

#include <cstdint>

#include "kvmesh/page.hpp"

namespace kvmesh::cuda {

/// Half of a pool to write to: [pages, kv_heads, page_size, dim]; strides in elements.
struct WritablePool {
  void* data;
  std::int64_t page_stride;
  std::int64_t head_stride;
  std::int64_t token_stride;
};

/// New keys or values: [tokens, kv_heads, dim].
struct NewRows {
  const void* data;
  std::int64_t token_stride;
  std::int64_t head_stride;
};

struct AppendParams {
  WritablePool k_pool;
  WritablePool v_pool;
  NewRows k;
  NewRows v;
  const TokenSlot* slots;  // [tokens]
  std::int32_t tokens;
  std::int32_t kv_heads;
};

/// The factors of float8 rows: `number`, or those in `per_token` [pages, kv_heads, page_size] (null
/// data: none), which append writes unless they are given.
struct WritableScale {
  float number;
  WritablePool per_token;
  bool is_given;
};

struct AppendFloat8Params {
  AppendParams append;
  WritableScale k_scale;
  WritableScale v_scale;
};

}  // namespace kvmesh::cuda
