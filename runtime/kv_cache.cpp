#include "kvmesh/kv_cache.hpp"

#include "core/check.hpp"
#include "runtime/cache_state.hpp"

namespace kvmesh {
namespace {

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

}  // namespace

PoolStorage::PoolStorage(const LocalShape& shape, int layers, Device device)
    : shape_(shape), device_(device) {
  const auto element = static_cast<std::int64_t>(kvmesh::size_bytes(shape.dtype));
  for (int layer = 0; layer < layers; ++layer) {
    buffers_.emplace_back(device, static_cast<std::size_t>(shape.k_elements() * element));
    buffers_.emplace_back(device, static_cast<std::size_t>(shape.v_elements() * element));
  }
}

KvPool PoolStorage::layer(int layer) const {
  const auto k = static_cast<std::size_t>(2 * layer);
  const AttentionShape& a = shape_.attention;
  return {
      {buffers_[k].data(), shape_.dtype, {shape_.pages, a.kv_heads, a.page_size, a.k_dim}, device_},
      {buffers_[k + 1].data(),
       shape_.dtype,
       {shape_.pages, a.kv_heads, a.page_size, a.v_dim},
       device_}};
}

std::int64_t PoolStorage::size_bytes() const {
  std::int64_t sum = 0;
  for (const DeviceMemory& buffer : buffers_) sum += static_cast<std::int64_t>(buffer.size_bytes());
  return sum;
}

KvCache::State::State(Mesh& owner, const CacheOptions& wanted)
    : mesh(&owner),
      options(checked(owner, wanted)),
      shape(supported(local_shape(owner, options))),
      allocator(allocator_options(owner, options)),
      pools(shape, options.layers, owner.device()),
      backend(make_backend(owner)) {}

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
  state_->allocator.truncate(sequence, length);
}
void KvCache::erase(SequenceId sequence) { state_->allocator.erase(sequence); }

void KvCache::check_replicas() { kvmesh::check_replicas(state_->allocator, state_->mesh->world()); }

std::int64_t KvCache::pool_bytes() const { return state_->pools.size_bytes(); }

KvPool KvCache::pool(int layer) {
  require(layer >= 0 && layer < state_->options.layers, "cache: layer {} of {}", layer,
          state_->options.layers);
  return state_->pools.layer(layer);
}

}  // namespace kvmesh
