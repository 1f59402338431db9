#include "kvmesh/kv_cache.hpp"

#include "core/check.hpp"
#include "runtime/cache_state.hpp"
#include "runtime/memory/agreed_pools.hpp"

namespace kvmesh {
namespace {

void check_memory(const CacheOptions& options) {
  const int given =
      (options.pages_per_rank != 0) + (options.bytes != 0) + (options.memory_fraction != 0);
  require(given == 1, "cache: give one of pages_per_rank ({}), bytes ({}) and memory_fraction ({})",
          options.pages_per_rank, options.bytes, options.memory_fraction);
  require(options.pages_per_rank >= 0 && options.bytes >= 0,
          "cache: pages_per_rank {} and bytes {} must not be negative", options.pages_per_rank,
          options.bytes);
  require(options.memory_fraction >= 0 && options.memory_fraction <= 1,
          "cache: memory_fraction {} must be in (0, 1]", options.memory_fraction);
}

CacheOptions checked(const Mesh& mesh, CacheOptions options) {
  if (options.v_dim == 0) options.v_dim = options.k_dim;
  require(options.layers > 0 && options.k_dim > 0 && options.v_dim > 0,
          "cache: layers {}, k_dim {}, v_dim {} must be positive", options.layers, options.k_dim,
          options.v_dim);
  require(options.q_heads > 0 && options.kv_heads > 0 && options.q_heads % options.kv_heads == 0,
          "cache: {} query heads do not divide over {} kv heads", options.q_heads,
          options.kv_heads);
  require(options.kv_heads % mesh.head_parallel() == 0,
          "cache: {} kv heads do not divide over head_parallel {}", options.kv_heads,
          mesh.head_parallel());
  check_memory(options);
  return options;
}

LocalShape local_shape(const Mesh& mesh, const CacheOptions& options) {
  return {.attention = {.q_heads = options.q_heads / mesh.head_parallel(),
                        .kv_heads = options.kv_heads / mesh.head_parallel(),
                        .k_dim = options.k_dim,
                        .v_dim = options.v_dim,
                        .page_size = options.page_size},
          .pages = options.pages_per_rank,
          .dtype = options.dtype};
}

AllocatorOptions allocator_options(const Mesh& mesh, const CacheOptions& options) {
  return {.ranks = mesh.kv_parallel(),
          .pages_per_rank = options.pages_per_rank,
          .page_size = options.page_size,
          .placement = options.placement,
          .home_threshold_tokens = options.home_threshold_tokens};
}

// What no kernel can compute is refused here, not by the first plan, after it has appended.
LocalShape supported(const LocalShape& shape) {
  const AttentionBatch nothing{
      .q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}};
  AttentionPlan(shape.attention, nothing, {});
  return shape;
}

// Collective: options with the number of pages, whichever way it was given.
CacheOptions resolved(Mesh& mesh, CacheOptions options) {
  options = checked(mesh, options);
  options.pages_per_rank = agreed_pages(mesh, options, supported(local_shape(mesh, options)));
  options.bytes = 0;
  options.memory_fraction = 0;
  return options;
}

}  // namespace

KvCache::State::State(Mesh& owner, const CacheOptions& wanted)
    : mesh(&owner),
      options(resolved(owner, wanted)),
      shape(local_shape(owner, options)),
      allocator(allocator_options(owner, options)),
      pools(agreed_pools(owner, shape, options.layers)),
      peers(pools, owner.kv()),
      backend(make_backend(owner)),
      local_pages(owner.kv_rank(), owner.kv_parallel()) {}

KvCache::KvCache(Mesh& mesh, const CacheOptions& options)
    : state_(std::make_unique<State>(mesh, options)) {}
KvCache::~KvCache() = default;
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;

const CacheOptions& KvCache::options() const { return state_->options; }
Mesh& KvCache::mesh() { return *state_->mesh; }
const PageAllocator& KvCache::allocator() const { return state_->allocator; }

SequenceId KvCache::create() { return state_->allocator.create(); }
void KvCache::reserve(SequenceId sequence, std::int64_t tokens) {
  state_->allocator.reserve(sequence, tokens);
}
bool KvCache::try_reserve(SequenceId sequence, std::int64_t tokens) {
  return state_->allocator.try_reserve(sequence, tokens);
}
SequenceId KvCache::fork(SequenceId sequence) { return state_->allocator.fork(sequence); }
void KvCache::truncate(SequenceId sequence, std::int64_t length) {
  const std::int64_t page_size = state_->options.page_size;
  require(length >= 0 && length <= state_->allocator.length(sequence),
          "truncate to {} tokens of a sequence of {}", length, state_->allocator.length(sequence));
  // The local pages first: they look at what goes.
  state_->local_pages.truncate(sequence, state_->allocator.pages(sequence),
                               static_cast<std::size_t>((length + page_size - 1) / page_size));
  state_->allocator.truncate(sequence, length);
}
void KvCache::erase(SequenceId sequence) {
  state_->allocator.erase(sequence);
  state_->local_pages.erase(sequence);
  state_->backend->forget(sequence);
}

BlockMask KvCache::make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) {
  return state_->backend->make_block_mask(mask, shape);
}

void KvCache::check_replicas() { kvmesh::check_replicas(state_->allocator, state_->mesh->world()); }

std::int64_t KvCache::pool_bytes() const { return state_->pools.size_bytes(); }

KvPool KvCache::pool(int layer) {
  require(layer >= 0 && layer < state_->options.layers, "cache: layer {} of {}", layer,
          state_->options.layers);
  return state_->pools.layer(layer);
}

std::optional<ConstKvPool> KvCache::peer_pool(Rank kv_rank, int layer) const {
  require(kv_rank.value >= 0 && kv_rank.value < state_->mesh->kv_parallel(),
          "cache: kv rank {} of {}", kv_rank.value, state_->mesh->kv_parallel());
  require(layer >= 0 && layer < state_->options.layers, "cache: layer {} of {}", layer,
          state_->options.layers);
  const std::optional<KvPool> pool = kv_rank == state_->mesh->kv_rank()
                                         ? state_->pools.layer(layer)
                                         : state_->peers.layer(kv_rank, layer);
  if (!pool) return std::nullopt;
  return ConstKvPool{pool->k, pool->v};
}

}  // namespace kvmesh
