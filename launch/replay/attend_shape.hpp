// The layers whose attention a replay computes.
#pragma once

#include <cstdint>
#include <string>

#include "kvmesh/tensor.hpp"

namespace kvmesh::replay {

/// The layers of caches that serve a trace, and the queries of a batch.
struct AttendShape {
  int layers = 1;
  int q_heads = 2;
  int kv_heads = 1;
  int dim = 16;                   ///< of queries, keys and values
  Dtype dtype = Dtype::kFloat32;  ///< of pages
  std::int64_t queries = 4;       ///< the most of a sequence in a batch: its newest tokens

  /// Query heads of a kv head.
  int group() const { return q_heads / kv_heads; }
  /// The dtype of queries, new keys and new values.
  Dtype input() const { return info_of(dtype).has_scales ? Dtype::kBFloat16 : dtype; }
  /// Bytes of a token's keys and values in pages, of all layers together.
  std::int64_t token_bytes() const;
};

/// Returns the struct's own numbers for a CPU, so that a trace is served in seconds; for a GPU a
/// layer of 32 query heads and 8 kv heads of 128 elements in bfloat16.
AttendShape default_shape(DeviceKind device);

/// @throws InvalidArgument, which names the flag of `kvmesh replay`.
void check(const AttendShape& shape);

/// "1 layer of 2 query heads and 1 kv head of dim 16 in float32".
std::string describe(const AttendShape& shape);

}  // namespace kvmesh::replay
