// Caches whose tokens say which they are, and their streams.
#pragma once

#include <numeric>
#include <optional>
#include <vector>

#include "kvmesh/sequence_stream.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {

using Reason = StreamError::Reason;
using Stream = std::vector<std::byte>;

inline constexpr int kHeads = 2, kDim = 8;

struct Shape {
  int ranks = 1, head_parallel = 1, page_size = 4;
  Placement placement = Placement::kBalanced;
};

inline CacheOptions options_of(const Shape& shape, PageKind kind = PageKind::kKv,
                               Dtype dtype = Dtype::kFloat32) {
  return {.layers = 3,
          .q_heads = 2 * kHeads,
          .kv_heads = kHeads,
          .k_dim = kDim,
          .v_dim = 6,
          .page_size = shape.page_size,
          .pages_per_rank = 1200 / shape.page_size,
          .dtype = dtype,
          .page_kind = kind,
          .placement = shape.placement,
          .home_threshold_tokens = 2 * shape.page_size,
          .prefix = {.enabled = true}};
}

inline MeshOptions mesh_of(const Shape& shape) {
  return {.head_parallel = shape.head_parallel,
          .threads = 1,
          .device = DeviceChoice::kCpu,
          .membership = rotated_membership(shape.ranks / shape.head_parallel)};
}

inline float number(std::int64_t token, int layer, std::int64_t head, std::int64_t d) {
  return static_cast<float>((token * 31 + layer * 17 + head * 13 + d * 5) % 97) / 8 - 6;
}

/// Appends `tokens` tokens, whose numbers say which they are, in every layer with keys.
inline void append_numbers(Mesh& mesh, KvCache& cache, SequenceId sequence, std::int64_t tokens) {
  const std::int64_t begin = cache.length(sequence);
  StepPlan plan = cache.plan({{sequence, tokens, 0}});
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    const CacheOptions o = cache.group_options(cache.group_of(layer));
    if (o.state_bytes > 0) continue;
    const IndexRange heads = share_of(o.kv_heads, mesh.head_rank(), mesh.head_parallel());
    std::vector<float> k, v;
    for (std::int64_t t = begin; t < begin + tokens; ++t) {
      for (std::int64_t head = heads.begin; head < heads.begin + heads.size(); ++head) {
        for (int d = 0; d < o.k_dim; ++d) k.push_back(number(t, layer, head, d));
        for (int d = 0; d < o.v_dim; ++d) v.push_back(number(t, layer, head, d + 50));
      }
    }
    const bool latent = o.page_kind == PageKind::kLatent;
    plan.append(layer, tensor(k.data(), {tokens, heads.size(), o.k_dim}),
                latent ? ConstTensorView{} : tensor(v.data(), {tokens, heads.size(), o.v_dim}));
  }
}

inline Stream export_of(Mesh& mesh, KvCache& cache, SequenceId sequence,
                        const PrefixKey* key = nullptr) {
  MemorySink sink;
  cache.export_sequence(sequence, mesh.rank().value == 0 ? &sink : nullptr, key);
  return {sink.bytes().begin(), sink.bytes().end()};
}

/// A stream of a sequence with numbers, exported by ranks of this shape.
inline Stream exported(const Shape& shape, const CacheOptions& options, std::int64_t tokens,
                       bool with_key = false) {
  Stream stream;
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options);
        const SequenceId other = cache.create(), sequence = cache.create();
        cache.reserve(other, 9);
        if (tokens > 0) append_numbers(mesh, cache, sequence, tokens);
        PrefixKey key = cache.make_prefix_key();
        std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
        std::iota(ids.begin(), ids.end(), 5);
        key.append(ids);
        const Stream mine = export_of(mesh, cache, sequence, with_key ? &key : nullptr);
        if (mesh.rank().value == 0) stream = mine;
      },
      mesh_of(shape));
  return stream;
}

/// Imports on ranks of this shape, and exports again.
inline Stream reexported(const Shape& shape, const CacheOptions& options, const Stream& stream) {
  Stream again;
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options);
        cache.reserve(cache.create(), 5);
        MemorySource source(stream);
        const ImportedSequence imported =
            cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr);
        EXPECT_EQ(cache.length(imported.sequence), imported.header.tokens);
        cache.allocator().verify_integrity();
        cache.check_replicas();
        const Stream mine = export_of(mesh, cache, imported.sequence);
        if (mesh.rank().value == 0) again = mine;
      },
      mesh_of(shape));
  return again;
}

/// Imports on 2 ranks beside a sequence that stays; expects an error and nothing else.
inline std::optional<Reason> refusal(const CacheOptions& options, const Stream& stream) {
  std::optional<Reason> reason;
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   KvCache cache(mesh, options);
                   const SequenceId stays = cache.create();
                   append_numbers(mesh, cache, stays, 9);
                   const Stream before = export_of(mesh, cache, stays);
                   const std::int64_t free = cache.allocator().free_pages();
                   MemorySource source(stream);
                   std::optional<Reason> mine;
                   try {
                     cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr);
                   } catch (const StreamError& error) {
                     mine = error.reason();
                   }
                   EXPECT_EQ(cache.allocator().sequences(), mine ? 1 : 2);
                   if (mine) {
                     EXPECT_EQ(cache.allocator().free_pages(), free);
                   }
                   EXPECT_EQ(export_of(mesh, cache, stays), before);
                   const auto all =
                       all_gather_value(mesh.world(), mine ? static_cast<int>(*mine) : -1);
                   EXPECT_EQ(all[0], all[1]);
                   if (mesh.rank().value == 0) reason = mine;
                 },
                 {.threads = 1, .device = DeviceChoice::kCpu});
  return reason;
}

}  // namespace kvmesh::test
