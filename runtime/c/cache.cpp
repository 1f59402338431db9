// Caches and sequences of the C interface.
#include <algorithm>

#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"
#include "runtime/c/tensors.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

namespace {

Dtype page_dtype(std::int32_t number) {
  return number == KVMESH_DTYPE_DEFAULT ? Dtype::kBFloat16 : dtype_of(number);
}

/// `count` scales, or none at NULL.
std::vector<float> scales_at(const float* scales, int count) {
  if (scales == nullptr) return {};
  return {scales, scales + std::max(count, 0)};
}

/// Reads the scales of a cache or of a layer group with `kv_heads` heads.
template <class Options>
KvScales scales_of(const Options& given, int kv_heads) {
  return {.kind = choice({ScaleKind::kPerTokenAndHead, ScaleKind::kPerTensor, ScaleKind::kPerHead},
                         given.scale_kind, "scale_kind"),
          .k = given.k_scale == 0 ? 1 : given.k_scale,
          .v = given.v_scale == 0 ? 1 : given.v_scale,
          .k_heads = scales_at(given.k_head_scales, kv_heads),
          .v_heads = scales_at(given.v_head_scales, kv_heads)};
}

PrefixOptions prefix_options(const kvmesh_cache_options_t& given) {
  return {.enabled = given.prefix_cache != 0,
          .hash = choice({PrefixHash::kSha256Cbor, PrefixHash::kXxh3}, given.prefix_hash,
                         "prefix_hash"),
          .seed = text_or_empty(given.prefix_seed),
          .eviction = choice({Eviction::kHits, Eviction::kTwoQueues, Eviction::kLru,
                              Eviction::kS3Fifo, Eviction::kSegmented},
                             given.eviction, "eviction")};
}

TierOptions tier_options(const kvmesh_tier_options_t* given) {
  if (given == nullptr) return {};
  const kvmesh_tier_options_t tiers = known(given);
  TierOptions options{.host_bytes = tiers.host_bytes,
                      .directory = text_or_empty(tiers.directory),
                      .durable = tiers.durable != 0,
                      .direct = tiers.direct != 0};
  if (tiers.model != nullptr) options.model = tiers.model;
  if (tiers.file_bytes != 0) options.file_bytes = tiers.file_bytes;
  if (tiers.stores_per_operation != 0) options.stores_per_operation = tiers.stores_per_operation;
  return options;
}

kvmesh_tier_counts_t counts_of(const TierCounts& counts) {
  return {counts.pages, counts.stores, counts.loads, counts.drops, counts.removed};
}

LayerGroup layer_group(const kvmesh_layer_group_t& given, int cache_heads) {
  LayerGroup group{.layers = layers_of(given.layers, given.layer_count),
                   .q_heads = given.q_heads,
                   .kv_heads = given.kv_heads,
                   .k_dim = given.k_dim,
                   .v_dim = given.v_dim,
                   .window = given.window};
  if (given.dtype != KVMESH_DTYPE_DEFAULT) group.dtype = dtype_of(given.dtype);
  if (given.has_own_kind != 0) {
    group.page_kind = choice({PageKind::kKv, PageKind::kLatent}, given.page_kind, "page_kind");
  }
  if (given.page_share != 0) group.page_share = given.page_share;
  group.state_bytes = given.state_bytes;
  if (given.has_own_scales != 0) {
    group.scales = scales_of(given, given.kv_heads != 0 ? given.kv_heads : cache_heads);
  }
  return group;
}

CacheOptions cache_options(const kvmesh_cache_options_t* given) {
  const kvmesh_cache_options_t known_options = known(&checked(given, "options"));
  CacheOptions options;
  if (known_options.layers != 0) options.layers = known_options.layers;
  options.q_heads = known_options.q_heads;
  options.kv_heads = known_options.kv_heads;
  options.k_dim = known_options.k_dim;
  options.v_dim = known_options.v_dim;
  if (known_options.page_size != 0) options.page_size = known_options.page_size;
  options.dtype = page_dtype(known_options.dtype);
  options.page_kind =
      choice({PageKind::kKv, PageKind::kLatent}, known_options.page_kind, "page_kind");
  options.scales = scales_of(known_options, known_options.kv_heads);
  options.prefix = prefix_options(known_options);
  options.placement = choice({Placement::kBalanced, Placement::kStriped, Placement::kPacked},
                             known_options.placement, "placement");
  options.pages_per_rank = known_options.pages_per_rank;
  options.bytes = known_options.bytes;
  options.max_pages_per_rank = known_options.max_pages_per_rank;
  options.memory_fraction = known_options.memory_fraction;
  options.reproducible = known_options.reproducible != 0;
  options.window = known_options.window;
  options.tiers = tier_options(known_options.tiers);
  for_each_known(known_options.groups, known_options.group_count, "groups",
                 [&](const kvmesh_layer_group_t& group) {
                   options.groups.push_back(layer_group(group, options.kv_heads));
                 });
  const std::int64_t home = known_options.home_threshold_tokens;
  require(home >= -2, "home_threshold_tokens {}", home);
  if (home > 0) options.home_threshold_tokens = home;
  if (home == -1) options.home_threshold_tokens = 0;
  if (home == kMeasuredHomeThreshold) options.home_threshold_tokens = home;
  return options;
}

}  // namespace

kvmesh_status_t kvmesh_cache_create(kvmesh_mesh_t* mesh, const kvmesh_cache_options_t* options,
                                    kvmesh_cache_t** cache) {
  return guarded([&] {
    kvmesh_cache_t*& made = checked(cache, "cache");
    made = new kvmesh_cache{KvCache(checked(mesh, "mesh").mesh, cache_options(options))};
  });
}

void kvmesh_cache_destroy(kvmesh_cache_t* cache) { delete cache; }

kvmesh_status_t kvmesh_cache_rebalance(kvmesh_cache_t* cache, int64_t limit, int64_t* moved) {
  return guarded([&] {
    const std::int64_t pages = checked(cache, "cache").cache.rebalance(limit);
    if (moved != nullptr) *moved = pages;
  });
}

kvmesh_status_t kvmesh_cache_rebalance_now(kvmesh_cache_t* cache, int64_t limit, int32_t leaving,
                                           void* stream, int64_t* moved, int64_t* moving) {
  return guarded([&] {
    const MoveProgress progress =
        checked(cache, "cache")
            .cache.rebalance_now({.limit = limit, .leaving = PageRank{leaving}}, Stream{stream});
    if (moved != nullptr) *moved = progress.moved;
    if (moving != nullptr) *moving = progress.moving;
  });
}

kvmesh_status_t kvmesh_cache_resize(kvmesh_cache_t* cache, int32_t kv_rank, int64_t pages,
                                    int64_t* moved) {
  return guarded([&] {
    const std::int64_t count = checked(cache, "cache").cache.resize(PageRank{kv_rank}, pages);
    if (moved != nullptr) *moved = count;
  });
}

kvmesh_status_t kvmesh_cache_drain(kvmesh_cache_t* cache, int32_t kv_rank, int64_t* moved) {
  return kvmesh_cache_resize(cache, kv_rank, 0, moved);
}

kvmesh_status_t kvmesh_cache_add_rank(kvmesh_cache_t* cache, int32_t kv_rank) {
  return guarded([&] { checked(cache, "cache").cache.add_rank(PageRank{kv_rank}); });
}

kvmesh_status_t kvmesh_cache_pool_pages(const kvmesh_cache_t* cache, int32_t kv_rank,
                                        int64_t* pages) {
  return guarded([&] {
    checked(pages, "pages") =
        checked(cache, "cache").cache.allocator().pool_pages(PageRank{kv_rank});
  });
}

kvmesh_status_t kvmesh_sequence_state(kvmesh_cache_t* cache, int32_t layer,
                                      kvmesh_sequence_t sequence, void** state) {
  return guarded([&] {
    void*& to = checked(state, "state");
    to = checked(cache, "cache").cache.sequence_state(layer, SequenceId(sequence)).data;
  });
}

kvmesh_status_t kvmesh_sequence_create(kvmesh_cache_t* cache, kvmesh_sequence_t* made) {
  return guarded([&] {
    kvmesh_sequence_t& to = checked(made, "made");
    to = checked(cache, "cache").cache.create().value;
  });
}

kvmesh_status_t kvmesh_sequence_reserve(kvmesh_cache_t* cache, kvmesh_sequence_t sequence,
                                        int64_t tokens) {
  return guarded([&] { checked(cache, "cache").cache.reserve(SequenceId(sequence), tokens); });
}

kvmesh_status_t kvmesh_sequence_reserve_after(kvmesh_cache_t* cache, kvmesh_sequence_t sequence,
                                              int64_t tokens, void* stream) {
  return guarded(
      [&] { checked(cache, "cache").cache.reserve(SequenceId(sequence), tokens, Stream{stream}); });
}

kvmesh_status_t kvmesh_sequence_fork(kvmesh_cache_t* cache, kvmesh_sequence_t sequence,
                                     kvmesh_sequence_t* made) {
  return guarded([&] {
    kvmesh_sequence_t& to = checked(made, "made");
    to = checked(cache, "cache").cache.fork(SequenceId(sequence)).value;
  });
}

kvmesh_status_t kvmesh_sequence_truncate(kvmesh_cache_t* cache, kvmesh_sequence_t sequence,
                                         int64_t length) {
  return guarded([&] { checked(cache, "cache").cache.truncate(SequenceId(sequence), length); });
}

kvmesh_status_t kvmesh_sequence_erase(kvmesh_cache_t* cache, kvmesh_sequence_t sequence) {
  return guarded([&] { checked(cache, "cache").cache.erase(SequenceId(sequence)); });
}

kvmesh_status_t kvmesh_sequence_length(const kvmesh_cache_t* cache, kvmesh_sequence_t sequence,
                                       int64_t* length) {
  return guarded([&] {
    checked(length, "length") =
        checked(cache, "cache").cache.allocator().length(SequenceId(sequence));
  });
}

kvmesh_status_t kvmesh_cache_get_info(const kvmesh_cache_t* cache, kvmesh_cache_info_t* info) {
  return guarded([&] {
    const KvCache& of = checked(cache, "cache").cache;
    fill(info, {.size = 0,
                .pages_per_rank = of.options().pages_per_rank,
                .free_pages = of.allocator().free_pages(),
                .sequences = of.allocator().sequences(),
                .pool_bytes = of.pool_bytes(),
                .digest = of.digest()});
  });
}

kvmesh_status_t kvmesh_cache_get_tier_statistics(const kvmesh_cache_t* cache,
                                                 kvmesh_tier_statistics_t* statistics) {
  return guarded([&] {
    const TierStatistics now = checked(cache, "cache").cache.tier_statistics();
    const FileFaults& faults = now.faults;
    fill(statistics, {.size = 0,
                      .host = counts_of(now.host),
                      .file = counts_of(now.file),
                      .pages_back = now.pages_back,
                      .corrupt = faults.corrupt,
                      .truncated = faults.truncated,
                      .foreign = faults.foreign,
                      .full = faults.full,
                      .denied = faults.denied,
                      .io = faults.io});
  });
}

kvmesh_status_t kvmesh_cache_flush_tiers(kvmesh_cache_t* cache) {
  return guarded([&] { checked(cache, "cache").cache.flush_tiers(); });
}

kvmesh_status_t kvmesh_cache_check_replicas(kvmesh_cache_t* cache) {
  return guarded([&] { checked(cache, "cache").cache.check_replicas(); });
}
