#include "kvmesh/kv_cache.hpp"

#include "core/check.hpp"
#include "runtime/cache_state.hpp"
#include "runtime/memory/agreed_pools.hpp"
#include "runtime/memory/cache_agreement.hpp"
#include "runtime/mesh/replica_check.hpp"

namespace kvmesh {
namespace {

AllocatorOptions allocator_options(const Mesh& mesh, const CacheAgreement& agreed) {
  return {.ranks = mesh.kv_parallel(),
          .pages_per_rank = agreed.options.pages_per_rank,
          .page_size = agreed.options.page_size,
          .placement = agreed.options.placement,
          .home_threshold_tokens = agreed.options.home_threshold_tokens,
          .id_space = agreed.id_space};
}

}  // namespace

KvCache::State::State(Mesh owner, const CacheAgreement& agreed)
    : mesh(std::move(owner)),
      options(agreed.options),
      shape(local_shape(mesh, options)),
      allocator(allocator_options(mesh, agreed)),
      pools(agreed_pools(mesh, shape, options.layers)),
      peers(pools, mesh.kv()),
      backend(make_backend(mesh)),
      local_pages(mesh.kv_rank(), mesh.kv_parallel()) {}

KvCache::State::~State() {
  let_go();
  for (CacheUser* user : users) user->cache_ends();
}

KvCache::KvCache(Mesh& mesh, const CacheOptions& options) {
  Mesh mine = mesh.share();
  const CacheAgreement agreed = agree_on_cache(mine, options);
  state_ = std::make_unique<State>(std::move(mine), agreed);
}
KvCache::~KvCache() = default;
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;

const CacheOptions& KvCache::options() const { return state_->options; }
Mesh& KvCache::mesh() { return state_->mesh; }
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
  // The local pages first: truncate() reads the table entries that the allocator removes.
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

void KvCache::check_replicas() { kvmesh::check_replicas(state_->allocator, state_->mesh.world()); }

std::int64_t KvCache::pool_bytes() const { return state_->pools.size_bytes(); }

KvPool KvCache::pool(int layer) {
  require(layer >= 0 && layer < state_->options.layers, "cache: layer {} of {}", layer,
          state_->options.layers);
  return state_->pools.layer(layer);
}

std::optional<ConstKvPool> KvCache::peer_pool(Rank kv_rank, int layer) const {
  require(kv_rank.value >= 0 && kv_rank.value < state_->mesh.kv_parallel(),
          "cache: kv rank {} of {}", kv_rank.value, state_->mesh.kv_parallel());
  require(layer >= 0 && layer < state_->options.layers, "cache: layer {} of {}", layer,
          state_->options.layers);
  const std::optional<KvPool> pool = kv_rank == state_->mesh.kv_rank()
                                         ? state_->pools.layer(layer)
                                         : state_->peers.layer(kv_rank, layer);
  if (!pool) return std::nullopt;
  return ConstKvPool{pool->k, pool->v};
}

}  // namespace kvmesh
