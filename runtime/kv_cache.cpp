#include "kvmesh/kv_cache.hpp"

#include "core/check.hpp"
#include "kernels/pool_checks.hpp"
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
          .id_space = agreed.id_space,
          .prefix = agreed.options.prefix};
}

void check_layer(const CacheOptions& options, int layer) {
  require(layer >= 0 && layer < options.layers, "cache: layer {} of {}", layer, options.layers);
}

}  // namespace

KvCache::State::State(Mesh owner, const CacheAgreement& agreed)
    : mesh(std::move(owner)),
      options(agreed.options),
      shape(local_shape(mesh, options)),
      allocator(allocator_options(mesh, agreed)),
      pools(agreed_pools(mesh, make_page_format(shape.attention, shape.format), shape.pages,
                         options.layers)),
      peers(pools, mesh.kv()),
      backend(make_backend(mesh, allocator)),
      local_pages(mesh.kv_rank(), allocator) {}

std::vector<TokenSlot> KvCache::State::slots_of(SequenceId sequence,
                                                std::span<const std::int64_t> positions) const {
  const std::span<const PageId> table = allocator.pages(sequence);
  const std::int64_t capacity = allocator.capacity(sequence);
  std::vector<TokenSlot> slots;
  slots.reserve(positions.size());
  for (const std::int64_t position : positions) {
    require(position >= 0 && position < capacity,
            "write: position {} of sequence {}, which has room for {}", position, sequence,
            capacity);
    const PageId page = table[static_cast<std::size_t>(position / options.page_size)];
    require(allocator.is_writable(page),
            "write: position {} of sequence {} is on a shared or published page: make it writable "
            "first",
            position, sequence);
    const auto offset = static_cast<std::int32_t>(position % options.page_size);
    slots.push_back(page.rank() == mesh.kv_rank() ? TokenSlot{page.index(), offset} : TokenSlot{});
  }
  return slots;
}

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

KvCache::State& KvCache::state() const {
  require(state_ != nullptr, "cache: it has been moved from");
  return *state_;
}

const CacheOptions& KvCache::options() const { return state().options; }
Mesh& KvCache::mesh() { return state().mesh; }
const PageAllocator& KvCache::allocator() const { return state().allocator; }

SequenceId KvCache::create() { return state().allocator.create(); }
void KvCache::reserve(SequenceId sequence, std::int64_t tokens) {
  state().allocator.reserve(sequence, tokens);
}
Result<Done> KvCache::try_reserve(SequenceId sequence, std::int64_t tokens) {
  return state().allocator.try_reserve(sequence, tokens);
}
SequenceId KvCache::fork(SequenceId sequence) { return state().allocator.fork(sequence); }
void KvCache::truncate(SequenceId sequence, std::int64_t length) {
  state().allocator.truncate(sequence, length);
}
void KvCache::erase(SequenceId sequence) { state().allocator.erase(sequence); }

void KvCache::make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end) {
  try_make_writable(sequence, begin, end).value();
}

Result<Done> KvCache::try_make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end) {
  const auto copies = state().allocator.try_make_writable(sequence, begin, end);
  if (!copies) return copies.reason();
  state().make_copies(*copies);
  return Done{};
}

void KvCache::write(int layer, SequenceId sequence, std::span<const std::int64_t> positions,
                    const ConstTensorView& k, const ConstTensorView& v, Stream stream) {
  const KvPool to = pool(layer);
  check_new_tokens(k, v, to, std::ssize(positions));
  const Device device = state().mesh.device();
  for (const ConstTensorView* tensor : {&k, &v})
    require(tensor->empty() || tensor->device == device, "write: {} is in {}, the cache in {}",
            *tensor, tensor->device, device);
  const std::vector<TokenSlot> slots = state().slots_of(sequence, positions);
  if (!slots.empty()) state().backend->write(to, k, v, slots, stream);
}

PrefixKey KvCache::make_prefix_key(PrefixExtras extras) const {
  return PrefixKey(state().allocator.prefix_rules(), std::move(extras));
}
PrefixMatch KvCache::match_prefix(const PrefixKey& key) {
  return state().allocator.match_prefix(key);
}
SequenceId KvCache::create_with_prefix(const PrefixMatch& match) {
  return state().allocator.create_with_prefix(match);
}
SequenceId KvCache::create_with_prefix(const PrefixKey& key) {
  return state().allocator.create_with_prefix(key);
}
void KvCache::release(const PrefixMatch& match) { state().allocator.release(match); }
void KvCache::publish(SequenceId sequence, const PrefixKey& key,
                      std::span<const Retention> retentions) {
  state().allocator.publish(sequence, key, retentions);
}

BlockMask KvCache::make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) {
  return state().backend->make_block_mask(mask, shape);
}

void KvCache::check_replicas() { kvmesh::check_replicas(state().allocator, state().mesh.world()); }

std::int64_t KvCache::pool_bytes() const { return state().pools.size_bytes(); }

const PageFormat& KvCache::page_format() const { return state().pools.layout().format(); }

PagePlanes KvCache::planes(int layer) {
  check_layer(state().options, layer);
  return state().pools.layer(layer);
}

KvPool KvCache::pool(int layer) {
  check_layer(state().options, layer);
  return state().pool(layer);
}

std::optional<ConstKvPool> KvCache::peer_pool(Rank kv_rank, int layer) const {
  require(kv_rank.value >= 0 && kv_rank.value < state().mesh.kv_parallel(),
          "cache: kv rank {} of {}", kv_rank.value, state().mesh.kv_parallel());
  check_layer(state().options, layer);
  if (kv_rank == state().mesh.kv_rank()) return state().pool(layer);
  const std::optional<PagePlanes> planes = state().peers.layer(kv_rank, layer);
  if (!planes) return std::nullopt;
  return kv_pool(state().shape.attention, state().shape.format, *planes);
}

}  // namespace kvmesh
