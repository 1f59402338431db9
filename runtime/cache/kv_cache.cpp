// The construction of a KvCache, and the members that read it. The other members:
//
//   plans.cpp                      plan, replan and their try_ forms
//   sequences.cpp                  create, fork, truncate, erase, prefixes, tiers
//   compact.cpp                    compact
//   movement.cpp                   rebalance, rebalance_now, resize, drain, add_rank
//   streams/sequence_transfer.cpp  export_sequence, import_sequence
#include "kvmesh/kv_cache.hpp"

#include <algorithm>
#include <numeric>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "kernels/pool_checks.hpp"
#include "kvmesh/device_memory.hpp"
#include "runtime/cache/cache_state.hpp"
#include "runtime/memory/agreed_pools.hpp"
#include "runtime/memory/cache_agreement.hpp"
#include "runtime/memory/head_scales.hpp"
#include "runtime/memory/home_threshold.hpp"
#include "runtime/mesh/replica_check.hpp"

namespace kvmesh {
namespace {

/// Returns the options of a group's allocator; keys have pages of `page_size` tokens. The pools of
/// page rank r have `now[r]` pages and at most `most[r]`.
AllocatorOptions allocator_options(const Mesh& mesh, const CacheOptions& group, int page_size,
                                   const std::vector<std::int64_t>& now,
                                   const std::vector<std::int64_t>& most, std::uint16_t id_space) {
  const std::int64_t largest = std::ranges::max(most);
  const bool differs = std::ranges::any_of(now, [&](std::int64_t it) { return it != largest; });
  return {.ranks = mesh.kv_parallel(),
          .pages_per_rank = largest,
          .pool_pages = differs ? now : std::vector<std::int64_t>(),
          .page_size = group.page_size,
          .placement = group.placement,
          .home_threshold_tokens = group.home_threshold_tokens,
          .id_space = id_space,
          .prefix = group.prefix,
          .window = group.window,
          .state_interval = group.state_bytes > 0 ? page_size : 0};
}

CacheOptions with_pages(CacheOptions options, std::int64_t pages_per_rank) {
  options.pages_per_rank = pages_per_rank;
  return options;
}

/// The options of this rank's pools at their largest.
CacheOptions largest(const Mesh& mesh, const CacheAgreement& agreed) {
  return with_pages(agreed.options,
                    agreed.pools[static_cast<std::size_t>(mesh.page_rank().value)].most);
}

/// [group] for how many pages this rank's pools need memory; empty: for all.
std::vector<std::int64_t> first_pages(const Mesh& mesh, const CacheAgreement& agreed) {
  const PoolSizes& pool = agreed.pools[static_cast<std::size_t>(mesh.page_rank().value)];
  if (pool.growth != Growth::kPieces) return {};
  return pages_of_groups(agreed.options, pool.now);
}

/// Writes the scales of this rank's heads beside a group's pages, and returns them there.
TensorView put_head_scales(const Mesh& mesh, const CacheOptions& group, const TensorView& to) {
  const std::vector<float> scales = head_scales_of(mesh, group);
  copy_bytes(to.data, scales.data(), scales.size() * sizeof(float));
  return to;
}

/// [kv rank]
std::vector<PoolLayout> layouts_of(const Mesh& mesh, const CacheAgreement& agreed) {
  std::vector<PoolLayout> layouts;
  for (Rank rank{0}; rank.value < mesh.kv_parallel(); ++rank.value) {
    const auto pool = static_cast<std::size_t>(mesh.membership().page_rank(rank).value);
    layouts.push_back(pool_layout(mesh, with_pages(agreed.options, agreed.pools[pool].most)));
  }
  return layouts;
}

/// A number of each page rank's pools, for one group.
std::vector<std::int64_t> pages_of_ranks(const CacheAgreement& agreed, std::size_t group,
                                         std::int64_t PoolSizes::*number) {
  std::vector<std::int64_t> pages;
  for (const PoolSizes& pool : agreed.pools)
    pages.push_back(pages_of_groups(agreed.options, pool.*number)[group]);
  return pages;
}

}  // namespace

KvCache::State::State(Mesh owner, const CacheAgreement& agreed)
    : mesh(std::move(owner)),
      options(agreed.options),
      pools(
          agreed_pools(mesh, pool_layout(mesh, largest(mesh, agreed)), first_pages(mesh, agreed))),
      peers(pools, mesh.kv_comm(), layouts_of(mesh, agreed)),
      group_of_layer(static_cast<std::size_t>(options.layers)),
      pool_sizes(agreed.pools),
      side_moves(mesh, groups, pools, peers) {
  for (const CacheOptions& group : options_of_groups(largest(mesh, agreed))) {
    const std::size_t g = groups.size();
    for (const int layer : pools.layout().groups()[g].layers) {
      group_of_layer[static_cast<std::size_t>(layer)] = g;
    }
    groups.emplace_back(
        mesh, group,
        allocator_options(mesh, group, options.page_size,
                          pages_of_ranks(agreed, g, &PoolSizes::now),
                          pages_of_ranks(agreed, g, &PoolSizes::most), agreed.id_space),
        put_head_scales(mesh, group, pools.head_scales(g)));
  }
  if (!options.tiers.enabled()) return;
  tiers = std::make_unique<CacheTiers>(mesh, options, groups, pools,
                                       [this](std::optional<Stream> stream) {
                                         if (!stream) return wait_for_late_moves();
                                         order_after_late_moves(*stream);
                                       });
}

std::size_t KvCache::State::index_of_group(int layer) const {
  require(layer >= 0 && layer < options.layers, "cache: layer {} of {}", layer, options.layers);
  return group_of_layer[static_cast<std::size_t>(layer)];
}

std::size_t KvCache::State::attention_group(int layer) const {
  const std::size_t group = index_of_group(layer);
  require(!groups[group].has_states(), "cache: layer {} holds states, not keys and values", layer);
  return group;
}

std::uint64_t KvCache::State::digest() const {
  std::uint64_t digest = groups[0].allocator.digest();
  for (std::size_t g = 1; g < groups.size(); ++g) {
    digest = Hash().add(digest).add(groups[g].allocator.digest()).value();
  }
  return digest;
}

void KvCache::State::check_replicas() {
  for (const CacheGroup& group : groups) kvmesh::check_replicas(group.allocator, mesh.world());
}

std::vector<TokenSlot> KvCache::State::slots_of(const CacheGroup& group, SequenceId sequence,
                                                std::span<const std::int64_t> positions) const {
  const PageAllocator& allocator = group.allocator;
  const std::span<const PageId> table = allocator.pages(sequence);
  const std::int64_t capacity = allocator.capacity(sequence);
  const std::int64_t kept = allocator.first_kept(sequence);
  std::vector<TokenSlot> slots;
  slots.reserve(positions.size());
  for (const std::int64_t position : positions) {
    require(position >= 0 && position < capacity,
            "write: position {} of sequence {}, which has room for {}", position, sequence,
            capacity);
    require(position >= kept, "write: position {} of sequence {} is behind its window", position,
            sequence);
    const PageId page = table[static_cast<std::size_t>(position / options.page_size)];
    require(allocator.is_writable(page),
            "write: position {} of sequence {} is on a shared or published page: make it writable "
            "first",
            position, sequence);
    const auto offset = static_cast<std::int32_t>(position % options.page_size);
    slots.push_back(page.rank() == mesh.page_rank() ? TokenSlot{page.index(), offset}
                                                    : TokenSlot{});
  }
  return slots;
}

void KvCache::State::take_back_pages(const std::function<Result<Done>(std::size_t group)>& can) {
  const auto is_loading = [&] { return tiers && tiers->is_loading(); };
  if (!side_moves.has_destinations() && !is_loading()) return;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const Result<Done> now = can(g);
    const std::int64_t more =
        side_moves.pages_to_give_up(g) + (is_loading() ? tiers->pages_to_give_up(g) : 0);
    if (!now && now.reason().asked_pages() > now.reason().free_pages() + more) return;
  }
  for (std::size_t g = 0; g < groups.size() && side_moves.has_destinations(); ++g)
    if (!can(g)) side_moves.give_up();
  for (std::size_t g = 0; g < groups.size() && is_loading(); ++g)
    if (!can(g)) tiers->give_up_loads();
}

void KvCache::State::wait_for_peers() {
  if (mesh.kv_parallel() > 1) wait_idle();
}

void KvCache::State::let_go() noexcept {
  try {
    wait_for_peers();
  } catch (const std::exception&) {
    // The error is dropped: the NCCL group is broken now, and its next use reports that.
  }
}

KvCache::State::~State() {
  let_go();
  const auto end = [](const auto& wait) noexcept {
    try {
      wait();
    } catch (const std::exception&) {
      // The error is dropped: nothing uses the pages any more.
    }
  };
  end([&] { staging.wait(mesh.kv_comm()); });  // which the mesh owns; its world may be gone
  end([&] { side_moves.end(mesh.kv_comm()); });
  for (CacheGroup& group : groups) end([&] { group.backend->after_late_moves({}); });
  for (CacheUser* user : users) user->cache_ends();
}

KvCache::KvCache(Mesh& mesh, const CacheOptions& options) {
  Mesh mine = mesh.share();
  CacheAgreement agreed = agree_on_cache(mine, options);
  agreed.options.home_threshold_tokens = agreed_home_threshold(mine, agreed.options);
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

int KvCache::groups() const { return static_cast<int>(state().groups.size()); }
int KvCache::group_of(int layer) const { return static_cast<int>(state().index_of_group(layer)); }
CacheOptions KvCache::group_options(int group) const { return this->group(group).options; }
const PageAllocator& KvCache::allocator(int group) const { return this->group(group).allocator; }
std::uint64_t KvCache::digest() const { return state().digest(); }

CacheGroup& KvCache::group(int group) const {
  require(group >= 0 && group < groups(), "cache: layer group {} of {}", group, groups());
  return state().groups[static_cast<std::size_t>(group)];
}

void KvCache::write(int layer, SequenceId sequence, std::span<const std::int64_t> positions,
                    const ConstTensorView& k, const ConstTensorView& v, Stream stream) {
  const KvPool to = state().pool(layer);
  check_new_tokens(k, v, to, std::ssize(positions));
  const Device device = state().mesh.device();
  for (const ConstTensorView* tensor : {&k, &v})
    require(tensor->empty() || tensor->device == device, "write: {} is in {}, the cache in {}",
            *tensor, tensor->device, device);
  const CacheGroup& group = state().group_of(layer);
  const std::vector<TokenSlot> slots = state().slots_of(group, sequence, positions);
  state().wait_for_move_streams();
  if (!slots.empty()) group.backend->write(to, k, v, slots, stream);
}

std::vector<std::string> KvCache::kernel_programs() const {
  std::vector<std::string> names;
  for (const CacheGroup& group : state().groups) {
    for (std::string& name : group.backend->kernel_programs()) names.push_back(std::move(name));
  }
  std::ranges::sort(names);
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

BlockMask KvCache::make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) {
  return state().groups[0].backend->make_block_mask(mask, shape);
}

std::int64_t KvCache::pages_needed(std::span<const BatchEntry> batch, int group) const {
  std::vector<AppendRequest> requests;
  for (const BatchEntry& entry : batch) requests.push_back({entry.sequence, entry.append_tokens});
  return allocator(group).pages_needed(requests);
}

std::vector<std::int64_t> KvCache::order_by_owner(std::span<const BatchEntry> batch,
                                                  int group) const {
  const Membership& members = state().mesh.membership();
  const PageAllocator& pages = allocator(group);
  const std::int64_t window = this->group(group).options.window;
  std::vector<std::int32_t> owners;
  for (const BatchEntry& entry : batch) {
    const std::optional<PageRank> owner = owner_of(pages, entry, window);
    owners.push_back(owner ? members.holder(*owner).value : members.size());
  }
  std::vector<std::int64_t> order(batch.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(
      order, {}, [&](std::int64_t entry) { return owners[static_cast<std::size_t>(entry)]; });
  return order;
}

void KvCache::check_replicas() { state().check_replicas(); }

std::int64_t KvCache::pool_bytes() const {
  const PoolSizes& mine =
      state().pool_sizes[static_cast<std::size_t>(state().mesh.page_rank().value)];
  return mine.now == mine.most ? state().pools.size_bytes() : state().pool_bytes(mine.now);
}

const PageFormat& KvCache::page_format(int group) const {
  static_cast<void>(this->group(group));
  return state().pools.layout().groups()[static_cast<std::size_t>(group)].format;
}

PagePlanes KvCache::planes(int layer) {
  static_cast<void>(group_of(layer));
  state().wait_for_move_streams();
  return state().pools.layer(layer);
}

KvPool KvCache::pool(int layer) {
  state().wait_for_move_streams();
  return state().pool(layer);
}

TensorView KvCache::sequence_state(int layer, SequenceId sequence) {
  const CacheGroup& group = state().group_of(layer);
  require(group.has_states(), "cache: layer {} holds keys and values, not states", layer);
  const std::span<const PageId> pages = group.allocator.pages(sequence);
  if (pages.empty() || pages[0].rank() != state().mesh.page_rank()) return {};
  state().wait_for_late_moves();
  const TensorView all = state().pools.layer(layer)[0];  // [pages, 1, 1, elements]
  const std::int64_t elements = all.shape[3];
  return {static_cast<float*>(all.data) + pages[0].index() * elements,
          all.dtype,
          {elements},
          all.device};
}

std::optional<ConstKvPool> KvCache::peer_pool(Rank kv_rank, int layer) const {
  require(kv_rank.value >= 0 && kv_rank.value < state().mesh.kv_parallel(),
          "cache: kv rank {} of {}", kv_rank.value, state().mesh.kv_parallel());
  const CacheGroup& group = state().groups[state().attention_group(layer)];
  if (kv_rank == state().mesh.kv_rank()) return state().pool(layer);
  const std::optional<PagePlanes> planes = state().peers.layer(kv_rank, layer);
  if (!planes) return std::nullopt;
  return group.pool(*planes);
}

}  // namespace kvmesh
