#include "runtime/cache/group_tiers.hpp"

#include <algorithm>
#include <bit>
#include <new>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "runtime/memory/layer_groups.hpp"

namespace kvmesh {
namespace {

/// A hash of everything, except heads, that decides what the bytes of a group's pages mean.
std::uint64_t fingerprint(const CacheOptions& cache, const CacheOptions& group,
                          std::span<const int> layers, const PrefixRules& rules) {
  Hash hash;
  hash.add(cache.layers).add(group.kv_heads).add(group.k_dim).add(group.v_dim);
  hash.add(group.page_size).add(group.dtype).add(group.page_kind).add(rules.hash);
  hash.add_all(rules.seed);
  if (std::ssize(layers) != cache.layers) hash.add_all(layers);
  if (info_of(group.dtype).has_scales) {
    hash.add(group.scales.kind);
    if (group.scales.kind == ScaleKind::kPerTensor)
      hash.add(std::bit_cast<std::uint32_t>(group.scales.k))
          .add(std::bit_cast<std::uint32_t>(group.scales.v));
    for (const std::vector<float>* half : {&group.scales.k_heads, &group.scales.v_heads})
      for (const float scale : *half) hash.add(std::bit_cast<std::uint32_t>(scale));
  }
  return hash.value();
}

std::size_t page_bytes(const PoolGroup& group, int page_size) {
  std::size_t row = 0;
  for (const PagePlane& plane : group.format.planes)
    row += static_cast<std::size_t>(plane.elements) * size_bytes(plane.dtype);
  return row * static_cast<std::size_t>(group.format.heads) * static_cast<std::size_t>(page_size) *
         group.layers.size();
}

/// The group's part of a tier, in pages: groups share it as they share the device, so that pages
/// of the same tokens leave at the same time.
double pages_of_group(double bytes, const CacheOptions& cache, const PoolLayout& pools,
                      std::size_t number) {
  const auto share = [&](std::size_t g) { return g == 0 ? 1 : cache.groups[g - 1].page_share; };
  double unit = 0;
  for (std::size_t g = 0; g < pools.groups().size(); ++g)
    unit += share(g) * static_cast<double>(page_bytes(pools.groups()[g], cache.page_size));
  return bytes / unit * share(number);
}

FileTier::Options file_options(const Mesh& mesh, const CacheOptions& cache, CacheGroup& group,
                               const PoolLayout& pools, std::size_t number) {
  const PoolGroup& pool = pools.groups()[number];
  const std::size_t image = page_bytes(pool, cache.page_size);
  const std::size_t rows = static_cast<std::size_t>(cache.page_size) *
                           static_cast<std::size_t>(pool.format.heads) * pool.layers.size();
  const TierOptions& tiers = cache.tiers;
  const auto bytes = static_cast<double>(tiers.file_bytes);
  return {.folder = fmt::format(
              "{}/{}-{:016x}-v{}/layers-{}-{}", tiers.directory, tiers.model,
              fingerprint(cache, group.options, pool.layers, group.allocator.prefix_rules()),
              kPageFileVersion, pool.layers.front(), pool.layers.back()),
          .shape = {.dtype = group.options.dtype,
                    .group = static_cast<std::uint8_t>(number),
                    .first_layer = static_cast<std::uint16_t>(pool.layers.front()),
                    .layers = static_cast<std::uint16_t>(pool.layers.size()),
                    .first_head = static_cast<std::uint16_t>(mesh.head_rank() * pool.format.heads),
                    .heads = static_cast<std::uint16_t>(pool.format.heads),
                    .page_size = static_cast<std::uint16_t>(cache.page_size),
                    .planes = static_cast<std::uint16_t>(pool.format.planes.size()),
                    .row_bytes = static_cast<std::uint32_t>(image / rows)},
          .format = pool.format,
          .way = {.durable = tiers.durable, .direct = tiers.direct},
          .sharers = {.bytes = pools.groups().size() == 1
                                   ? tiers.file_bytes
                                   : static_cast<std::int64_t>(
                                         pages_of_group(bytes, cache, pools, number) *
                                         static_cast<double>(image)),
                      .parts = mesh.head_parallel(),
                      .ranks = mesh.kv_parallel(),
                      .part = mesh.head_rank(),
                      .rank = mesh.kv_rank().value},
          .eviction = cache.prefix.eviction,
          .me = mesh.page_rank(),
          .device = mesh.device()};
}

}  // namespace

GroupTiers::GroupTiers(Mesh& mesh, const CacheOptions& cache, CacheGroup& group,
                       const PoolStorage& pools, std::size_t number, FileCalls& calls)
    : mesh_(mesh),
      group_(group),
      stores_per_operation_(cache.tiers.stores_per_operation),
      cursor_(group.allocator.follow_evictions()),
      copies_(pools, group.make_move_stream(), mesh.world(), number) {
  if (!cache.tiers.directory.empty()) {
    file_ = std::make_unique<FileTier>(file_options(mesh, cache, group, pools.layout(), number),
                                       calls, copies_);
  }
  const auto bytes = static_cast<double>(cache.tiers.host_bytes);
  const auto pages =
      static_cast<std::int64_t>(pages_of_group(bytes, cache, pools.layout(), number));
  if (pages == 0) return;
  // Slots of all ranks are told apart by 32 bits.
  if (pages >= kNoSlot / mesh.kv_parallel()) throw std::bad_alloc();
  host_ = std::make_unique<HostTier>(HostTier::Options{.ranks = mesh.kv_parallel(),
                                                       .me = mesh.page_rank(),
                                                       .pages_per_rank = pages,
                                                       .eviction = cache.prefix.eviction,
                                                       .device = mesh.device()},
                                     copies_, file_.get());
}

GroupTiers::~GroupTiers() {
  if (file_) file_->end_loads();  // they use the copies
}

bool GroupTiers::read_evictions() {
  while (host_ || file_) {
    const std::span<const PageId> pages = group_.allocator.read_evictions(cursor_);
    if (pages.empty()) break;
    evicted_.insert(evicted_.end(), pages.begin(), pages.end());
  }
  return !evicted_.empty();
}

void GroupTiers::store_evicted() {
  // Children are evicted before their parents, and without them are no hits: drop the first ones.
  const auto most = static_cast<std::size_t>(stores_per_operation_);
  const std::size_t first = evicted_.size() - std::min(evicted_.size(), most);
  const auto store = [&](Tier& tier, PageId page) {
    tier.submit_store(group_.allocator.page_hash(page), {.page = page});
  };
  for (std::size_t i = 0; i < first; ++i) drops_ += evicted_[i].rank() == mesh_.page_rank();
  if (host_) {  // a page that is stored later leaves later
    for (std::size_t i = first; i < evicted_.size(); ++i) store(*host_, evicted_[i]);
  } else {  // the first ones surely get a buffer
    for (std::size_t i = evicted_.size(); i-- > first;) store(*file_, evicted_[i]);
  }
  if (file_ && !host_) {  // children leave before their parents, as they left the device
    std::vector<PageHash> pages;
    for (std::size_t i = first; i < evicted_.size(); ++i)
      pages.push_back(group_.allocator.page_hash(evicted_[i]));
    file_->renew(std::move(pages), false);
  }
  if (file_) trust_others();
  evicted_.clear();
  copies_.start();
}

/// Whether a flush has stored a page that leaves the device and that no tier takes is known to its
/// rank alone. So the others trust its file: if it was not stored, that rank still distrusts it.
void GroupTiers::trust_others() {
  for (const PageId page : evicted_) {
    const PageHash& hash = group_.allocator.page_hash(page);
    const bool is_in_host = host_ && host_->lookup(hash) == TierAnswer::kHit;
    if (page.rank() != mesh_.page_rank() && !is_in_host) file_->trust(hash);
  }
}

PagePlace GroupTiers::find(const PageHash& hash) const {
  if (group_.allocator.published_page(hash).valid()) return {.where = PagePlace::kDevice};
  if (host_ && host_->lookup(hash) == TierAnswer::kHit)
    return {.where = PagePlace::kHost, .rank = host_->rank_of(hash)};
  return {};
}

PagePlace GroupTiers::find_file(const PageHash& hash, InFiles how) {
  if (!file_ || how == InFiles::kNo) return {};
  if (how == InFiles::kNow && file_->is_distrusted(hash)) return {};
  TierAnswer answer = file_->lookup(hash);
  if (answer == TierAnswer::kRetry) {
    if (how == InFiles::kNow) return {.where = PagePlace::kComing};
    if (file_->wait_for_stores(mesh_.world().deadline() / 2)) answer = file_->lookup(hash);
  }
  if (answer != TierAnswer::kHit) return {};
  return {.where = PagePlace::kFile};
}

void GroupTiers::loaded(std::span<const PageHash> pages) {
  if (!file_ || pages.empty()) return;
  for (const PageHash& hash : pages) file_->trust(hash);
  file_->renew({pages.rbegin(), pages.rend()}, true);
}

TierJob GroupTiers::load(const PageHash& hash, const PagePlace& from, PageId to) {
  Tier* const tier = from.where == PagePlace::kFile ? static_cast<Tier*>(file_.get()) : host_.get();
  return tier->submit_load(hash, to);
}

void GroupTiers::store_in_file(const PageHash& hash, const PageSource& from) {
  const auto submit = [&] {
    const TierJob job = file_->submit_store(hash, from);
    return !completed(job) || job.get();
  };
  while (!submit())
    if (!file_->wait_for_stores(mesh_.world().deadline()))
      throw Timeout(mesh_.rank(), {}, "flush_tiers: writing files", mesh_.world().deadline());
}

void GroupTiers::store_all() {
  if (!file_) return;
  for (const PageId page : group_.allocator.published_pages())
    if (page.rank() == mesh_.page_rank())
      store_in_file(group_.allocator.page_hash(page), {.page = page});
  if (!host_) return;
  host_->for_each([&](const PageHash& hash, const PageSource& from) { store_in_file(hash, from); });
}

void GroupTiers::add_to(TierStatistics& sum) const {
  const auto add = [](TierCounts& to, const TierCounts& more) {
    for (auto number : {&TierCounts::pages, &TierCounts::stores, &TierCounts::loads,
                        &TierCounts::drops, &TierCounts::removed})
      to.*number += more.*number;
  };
  (host_ ? sum.host : sum.file).drops += drops_;
  if (host_) add(sum.host, host_->counts());
  if (!file_) return;
  add(sum.file, file_->counts());
  const FileFaults more = file_->faults();
  for (auto number : {&FileFaults::corrupt, &FileFaults::truncated, &FileFaults::foreign,
                      &FileFaults::full, &FileFaults::denied, &FileFaults::io})
    sum.faults.*number += more.*number;
}

}  // namespace kvmesh
