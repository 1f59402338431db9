#include "runtime/tiers/cache_tiers.hpp"

#include <algorithm>
#include <bit>
#include <new>

#include "core/check.hpp"
#include "core/hash.hpp"
#include "runtime/memory/layer_groups.hpp"
#include "runtime/tiers/host_move_stream.hpp"

namespace kvmesh {
namespace {

/// Everything but layers and heads that decides what a page's bytes mean.
std::uint64_t fingerprint(const CacheOptions& options, const PrefixRules& rules) {
  Hash hash;
  hash.add(options.layers).add(options.kv_heads).add(options.k_dim).add(options.v_dim);
  hash.add(options.page_size).add(options.dtype).add(options.page_kind).add(rules.hash);
  hash.add_all(rules.seed);
  if (options.dtype == Dtype::kFloat8E4M3) {
    hash.add(options.scales.kind);
    if (options.scales.kind == ScaleKind::kPerTensor)
      hash.add(std::bit_cast<std::uint32_t>(options.scales.k))
          .add(std::bit_cast<std::uint32_t>(options.scales.v));
  }
  return hash.value();
}

std::unique_ptr<MoveStream> stream_of(Backend& backend) {
  std::unique_ptr<MoveStream> stream = backend.make_move_stream();
  return stream ? std::move(stream) : std::make_unique<HostMoveStream>();
}

FileTier::Options file_options(const Mesh& mesh, const CacheOptions& options,
                               const PageAllocator& allocator, const PageFormat& format) {
  std::size_t row = 0;
  for (const PagePlane& plane : format.planes)
    row += static_cast<std::size_t>(plane.elements) * size_bytes(plane.dtype);
  const TierOptions& tiers = options.tiers;
  return {.folder = fmt::format("{}/{}-{:016x}/layers-0-{}", tiers.directory, tiers.model,
                                fingerprint(options, allocator.prefix_rules()), options.layers - 1),
          .shape = {.dtype = options.dtype,
                    .layers = static_cast<std::uint16_t>(options.layers),
                    .first_head = static_cast<std::uint16_t>(mesh.head_rank() * format.heads),
                    .heads = static_cast<std::uint16_t>(format.heads),
                    .page_size = static_cast<std::uint16_t>(options.page_size),
                    .planes = static_cast<std::uint16_t>(format.planes.size()),
                    .row_bytes = static_cast<std::uint32_t>(row)},
          .format = format,
          .way = {.durable = tiers.durable, .direct = tiers.direct},
          .bytes = tiers.file_bytes / mesh.size(),
          .ranks = mesh.kv_parallel(),
          .me = mesh.page_rank(),
          .device = mesh.device()};
}

}  // namespace

CacheTiers::CacheTiers(Mesh& mesh, const CacheOptions& options, PageAllocator& allocator,
                       Backend& backend, const PoolStorage& pools)
    : mesh_(mesh),
      options_(options.tiers),
      allocator_(allocator),
      backend_(backend),
      cursor_(allocator.follow()),
      copies_(pools, stream_of(backend), mesh.world()) {
  std::uint8_t has_room = 1;
  try {
    if (!options_.directory.empty()) {
      const PageFormat& format = pools.layout().groups().front().format;
      file_ = std::make_unique<FileTier>(file_options(mesh, options, allocator, format), calls_,
                                         copies_);
    }
    const auto pages = options_.host_bytes / static_cast<std::int64_t>(copies_.page_bytes());
    if (pages > 0) {
      const HostTier::Options of_host{.ranks = mesh.kv_parallel(),
                                      .me = mesh.page_rank(),
                                      .pages_per_rank = pages,
                                      .eviction = options.prefix.eviction,
                                      .device = mesh.device()};
      host_ = std::make_unique<HostTier>(of_host, copies_, file_.get());
    }
  } catch (const std::bad_alloc&) {
    has_room = 0;
  } catch (const Error&) {
    has_room = 0;
  }
  const auto all = all_gather_value(mesh.world(), has_room, "make tiers");
  const auto without = std::ranges::find(all, 0);
  if (without != all.end())
    throw OutOfMemory(Rank{static_cast<std::int32_t>(without - all.begin())}, options_.host_bytes,
                      "its tiers need that much host memory");
}

/// Orders copies after whoever writes or reads the pages.
void CacheTiers::copy_after(std::optional<Stream> stream) {
  if (mesh_.device().kind == DeviceKind::kCpu) return;
  stream ? copies_.after(*stream) : backend_.settle();
}

void CacheTiers::pages_taken(std::optional<Stream> after) {
  std::vector<PageId> evicted;
  for (;;) {
    const ChangeRun run = allocator_.read_changes(cursor_);
    if (run.lost) evicted.clear();
    if (run.changes.empty() && !run.lost) break;
    for (const Change& change : run.changes)
      if (change.kind == ChangeKind::kEvicted) evicted.push_back(change.old_page);
  }
  if (evicted.empty() || (!host_ && !file_)) return;
  copy_after(after);
  // Children are evicted before their parents, and are no hits without them.
  int stores = 0;
  for (std::size_t i = evicted.size(); i-- > 0 && stores < options_.stores_per_operation; ++stores)
    first().submit_store(allocator_.page_hash(evicted[i]), {.page = evicted[i]});
  copies_.start();
}

PrefixMatch CacheTiers::match(const PrefixKey& key, std::optional<Stream> after) {
  const PrefixMatch match = allocator_.match_prefix(key);
  const auto known = static_cast<std::size_t>(match.tokens / key.rules().page_size);
  std::vector<PageRank> homes = homes_of(key.hashes().subspan(known));
  fit(homes);
  return homes.empty() ? match : bring_back(match, key, homes, after);
}

/// Returns where the leading pages that tiers have should come back: on their rank of the host
/// tier; a negative rank for pages of files.
std::vector<PageRank> CacheTiers::homes_of(std::span<const PageHash> pages) {
  std::vector<PageRank> homes;
  bool needs_files = false;
  for (const PageHash& hash : pages) {
    if (host_ && host_->lookup(hash) == TierAnswer::kHit) {
      homes.push_back(host_->rank_of(hash));
      continue;
    }
    if (!file_) break;
    needs_files = true;
    if (!file_has(hash)) break;
    homes.push_back(PageRank{-1});
  }
  if (needs_files) homes.resize(least(homes.size(), "find pages of a prefix in files"));
  return homes;
}

bool CacheTiers::file_has(const PageHash& hash) {
  TierAnswer answer = file_->lookup(hash);
  if (answer == TierAnswer::kRetry) {
    file_->settle();
    answer = file_->lookup(hash);
  }
  return answer == TierAnswer::kHit;
}

/// The least of all ranks' counts. Collective over the world.
std::size_t CacheTiers::least(std::size_t count, std::string_view operation) {
  return std::ranges::min(all_gather_value(mesh_.world(), std::uint64_t{count}, operation));
}

/// Shortens the run to the pages for which there is room, on their ranks.
void CacheTiers::fit(std::vector<PageRank>& homes) const {
  std::vector<std::int64_t> room;
  for (PageRank rank{0}; rank.value < allocator_.options().ranks; ++rank.value)
    room.push_back(allocator_.free_pages(rank));
  std::int64_t total = allocator_.free_pages();
  const auto end = std::ranges::find_if(homes, [&](PageRank home) {
    if (total-- == 0) return true;
    return home.value >= 0 && room[static_cast<std::size_t>(home.value)]-- == 0;
  });
  homes.erase(end, homes.end());
}

PrefixMatch CacheTiers::bring_back(const PrefixMatch& match, const PrefixKey& key,
                                   std::span<const PageRank> homes, std::optional<Stream> after) {
  const int page_size = key.rules().page_size;
  const auto known = static_cast<std::size_t>(match.tokens / page_size);
  const std::span<const PageHash> hashes = key.hashes().subspan(known, homes.size());
  std::vector<PageHash> in_host;
  for (std::size_t i = 0; i < homes.size(); ++i)
    if (homes[i].value >= 0) in_host.push_back(hashes[i]);
  if (host_) host_->pin(in_host);
  static_cast<void>(allocator_.bring_back(match, homes));
  pages_taken(after);
  copy_after(after);
  const std::size_t loaded = load(hashes, homes, allocator_.pages(match.pin).subspan(known));
  if (host_) host_->unpin(in_host);
  const auto tokens = static_cast<std::int64_t>(known + loaded) * page_size;
  if (loaded < homes.size()) allocator_.truncate(match.pin, tokens);
  allocator_.publish(match.pin, key);
  pages_back_ += static_cast<std::int64_t>(loaded);
  return {.pin = match.pin, .tokens = tokens};
}

/// Returns how many leading pages came. Those of files are there; copies from the host tier may be
/// under way.
std::size_t CacheTiers::load(std::span<const PageHash> pages, std::span<const PageRank> homes,
                             std::span<const PageId> to) {
  std::vector<TierJob> jobs;
  std::size_t end = 0;
  bool has_files = false;
  for (; end < pages.size(); ++end) {
    const bool in_file = homes[end].value < 0;
    if (!in_file && to[end].rank() != homes[end]) break;  // placement took the rank's last page
    Tier& tier = in_file ? static_cast<Tier&>(*file_) : *host_;
    jobs.push_back(tier.submit_load(pages[end], to[end]));
    has_files |= in_file;
  }
  copies_.start();
  if (!has_files) return end;
  const auto failed =
      std::ranges::find_if(jobs, [this](const TierJob& job) { return !copies_.wait(job); });
  for (const TierJob& job : jobs) static_cast<void>(copies_.wait(job));
  return least(static_cast<std::size_t>(failed - jobs.begin()), "read pages of a prefix in files");
}

void CacheTiers::store_in_file(const PageHash& hash, const PageSource& from) {
  const auto submit = [&] {
    const TierJob job = file_->submit_store(hash, from);
    return !completed(job) || job.get();
  };
  while (!submit()) file_->settle();
}

void CacheTiers::flush() {
  if (!file_) return;
  copy_after({});
  for (const PageId page : allocator_.published_pages())
    if (page.rank() == mesh_.page_rank()) store_in_file(allocator_.page_hash(page), {.page = page});
  if (host_)
    host_->for_each([&](const PageHash& hash, const std::byte* image) {
      store_in_file(hash, {.bytes = image});
    });
  file_->settle();
}

TierStatistics CacheTiers::statistics() const {
  TierStatistics now{.pages_back = pages_back_};
  if (host_) now.host = host_->counts();
  if (file_) now.file = file_->counts();
  if (file_) now.faults = file_->faults();
  return now;
}

}  // namespace kvmesh
