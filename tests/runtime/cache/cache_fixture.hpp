// Options of a small cache, and a check that a call changed nothing.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kvmesh/kv_cache.hpp"

namespace kvmesh::test {

inline CacheOptions small_cache_options() {
  return {.layers = 2,
          .q_heads = 4,
          .kv_heads = 2,
          .k_dim = 8,
          .v_dim = 6,
          .page_size = 4,
          .pages_per_rank = 6,
          .dtype = Dtype::kFloat32};
}

/// The whole state of a cache: its allocator's digest and the bytes of its pools.
struct CacheImage {
  explicit CacheImage(KvCache& cache) : digest(cache.digest()) {
    for (int layer = 0; layer < cache.options().layers; ++layer) {
      for (const TensorView& plane : cache.planes(layer)) {
        const auto size = static_cast<std::size_t>(plane.elements()) * size_bytes(plane.dtype);
        const auto* first = static_cast<const std::byte*>(plane.data);
        bytes.insert(bytes.end(), first, first + size);
      }
    }
  }
  friend bool operator==(const CacheImage&, const CacheImage&) = default;

  std::uint64_t digest;
  std::vector<std::byte> bytes;
};

/// Expects that `call` throws an E and leaves the cache as it was.
template <class E, class Call>
void expect_refused(KvCache& cache, const Call& call) {
  const CacheImage before(cache);
  EXPECT_THROW(call(), E);
  EXPECT_EQ(CacheImage(cache), before) << "a call that failed has changed something";
  EXPECT_NO_THROW(cache.allocator().verify_integrity());
}

/// Fills `sequence` with `tokens` tokens of ones in every layer.
inline void fill(KvCache& cache, SequenceId sequence, std::int64_t tokens) {
  const CacheOptions& o = cache.options();
  std::vector<BatchEntry> batch{{sequence, tokens, 0}};
  StepPlan plan = cache.plan(batch);
  std::vector<float> ones(static_cast<std::size_t>(tokens * o.kv_heads * o.k_dim), 1.0f);
  for (int layer = 0; layer < o.layers; ++layer) {
    plan.append(layer, tensor(ones.data(), {tokens, o.kv_heads, o.k_dim}),
                tensor(ones.data(), {tokens, o.kv_heads, o.v_dim}));
  }
}

}  // namespace kvmesh::test
