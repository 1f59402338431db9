#include "runtime/cache/cache_tiers.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "core/check.hpp"

namespace kvmesh {

CacheTiers::CacheTiers(Mesh& mesh, const CacheOptions& options, std::deque<CacheGroup>& groups,
                       const PoolStorage& pools, AfterLateMoves after_late_moves,
                       std::unique_ptr<FileCalls> calls)
    : mesh_(mesh),
      groups_(groups),
      after_late_moves_(std::move(after_late_moves)),
      calls_(std::move(calls)),
      coming_(groups.size()) {
  std::uint8_t has_room = 1;
  try {
    for (std::size_t g = 0; g < groups.size(); ++g)
      tiers_.push_back(std::make_unique<GroupTiers>(mesh, options, groups[g], pools, g, *calls_));
  } catch (const std::bad_alloc&) {
    has_room = 0;
  } catch (const Error&) {
    has_room = 0;
  }
  const auto all = all_gather_value(mesh.world(), has_room, "make tiers");
  const auto without = std::ranges::find(all, 0);
  if (without != all.end())
    throw OutOfMemory(Rank{static_cast<std::int32_t>(without - all.begin())},
                      options.tiers.host_bytes, "its tiers need that much host memory");
}

/// Orders copies after the work on `stream`, which writes or reads the pages.
void CacheTiers::copy_after(std::optional<Stream> stream) {
  if (!stream) groups_.front().backend->wait_idle();
  after_late_moves_(stream);
  if (!stream || mesh_.device().kind == DeviceKind::kCpu) return;
  for (const auto& tiers : tiers_) tiers->copies().after(*stream);
}

void CacheTiers::pages_taken(std::optional<Stream> after) {
  bool has_stores = false;
  for (const auto& tiers : tiers_) has_stores |= tiers->read_evictions();
  if (!has_stores) return;
  std::exception_ptr failure;
  try {
    copy_after(after);
  } catch (...) {
    // The pages may still be written to, so no copy is right. The index stays equal to that of the
    // other ranks.
    failure = std::current_exception();
    if (!failure_) failure_ = failure;
    for (const auto& tiers : tiers_) tiers->copies().give_up();
  }
  for (const auto& tiers : tiers_) tiers->store_evicted();
  if (failure) std::rethrow_exception(failure);
}

void CacheTiers::before(Stream stream) {
  keep_failure([&] {
    for (const auto& tiers : tiers_) tiers->copies().before(stream);
  });
}

void CacheTiers::wait() {
  keep_failure([&] {
    for (const auto& tiers : tiers_) tiers->copies().wait_all();
  });
}

std::vector<TierJob> CacheTiers::copies_so_far() {
  std::vector<TierJob> jobs;
  for (const auto& tiers : tiers_) jobs.push_back(tiers->copies().then([] { return true; }));
  return jobs;
}

PrefixMatch CacheTiers::match(const PrefixKey& key, std::optional<Stream> after) {
  // The match's own loads would wait behind those that are under way, and may be of the same pages.
  if (is_loading() && needs_files(key)) publish_loads(mesh_.world().deadline() / 2);
  return match(key, after, InFiles::kWait);
}

PrefixMatch CacheTiers::match(const PrefixKey& key, std::optional<Stream> after, InFiles in_files) {
  Places places = no_places(key);
  for (std::int64_t limit = std::ssize(key.hashes());;) {
    leave_out_full(places, key, limit);
    const std::int64_t pages = agreed_run(places, key, limit, in_files).pages;
    if (pages * key.rules().page_size <= cached_tokens(groups_, key))
      return match_prefix(groups_, key);
    if (const auto match = bring_back(key, pages, places, limit, after)) return *match;
  }
}

/// Exchanges numbers that are not negative. Returns those of rank 0, then those of rank 1, and so
/// on. @throws on all ranks if `attempt` has failed on one.
std::vector<std::int64_t> CacheTiers::of_all_ranks(std::span<const std::int64_t> mine,
                                                   const Attempt& attempt,
                                                   std::string_view operation) {
  constexpr std::int64_t kFailed = -1;
  std::vector<std::int64_t> sent(mine.begin(), mine.end()), all;
  if (attempt.failed()) std::ranges::fill(sent, kFailed);
  try {
    all = all_gather_values(mesh_.world(), std::span<const std::int64_t>(sent), operation);
  } catch (const Error&) {
    if (!attempt.failed()) throw;
  }
  attempt.rethrow();
  const auto failed = std::ranges::find(all, kFailed);
  if (failed != all.end())
    throw Error(fmt::format("match_prefix: rank {} could not read its tiers; no rank has a match",
                            (failed - all.begin()) / std::ssize(mine)));
  return all;
}

/// Returns the least of all ranks for each of the numbers. @throws as of_all_ranks.
std::vector<std::int64_t> CacheTiers::least_of_all_ranks(std::span<const std::int64_t> mine,
                                                         const Attempt& attempt,
                                                         std::string_view operation) {
  std::vector<std::int64_t> least(mine.begin(), mine.end());
  const std::vector<std::int64_t> all = of_all_ranks(mine, attempt, operation);
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::int64_t& number = least[i % least.size()];
    number = std::min(number, all[i]);
  }
  return least;
}

/// Lists the pages that the groups lack for a run. Returns whether there is room for all of them.
/// Else the next search finds another run: `limit` is the first page for which there is no room,
/// and pages of host tiers without room on their ranks are not there any more.
bool CacheTiers::find_room(const PrefixKey& key, std::int64_t pages, Places& places,
                           std::int64_t& limit, std::vector<Part>& parts) {
  parts.assign(groups_.size(), {});
  limit = pages;
  bool has_room = true;
  for (std::size_t g = 0; g < parts.size(); ++g) {
    limit = std::min(limit, missing(g, key, pages, places, parts[g]));
    has_room &= !parts[g].lacks_room;
  }
  return has_room && limit == pages;
}

/// Lists the pages that the group lacks for a run. Returns the first one for which it has no room;
/// `pages` if it has room for all. A page of a host tier comes back on its rank: without room there
/// it is not there for this search, which may find it in files, and these come back anywhere. Pages
/// of the run that are cached cannot be evicted for it.
std::int64_t CacheTiers::missing(std::size_t group, const PrefixKey& key, std::int64_t pages,
                                 Places& places, Part& part) {
  const PageAllocator& allocator = groups_[group].allocator;
  std::vector<std::int64_t> room;
  for (PageRank rank{0}; rank.value < allocator.options().ranks; ++rank.value)
    room.push_back(allocator.free_pages(rank));
  std::int64_t total = allocator.free_pages();
  const std::int64_t first = first_seen(group, key, pages);
  for (std::int64_t page = first; page < pages; ++page) {
    const PageHash& hash = key.hashes()[static_cast<std::size_t>(page)];
    const PageId known = allocator.published_page(hash);
    if (!known.valid()) {
      part.pages.push_back(page);
      part.places.push_back(*places[group][static_cast<std::size_t>(page)]);
      const PagePlace::Where where = part.places.back().where;
      if (where == PagePlace::kHost) part.in_host.push_back(hash);
      if (where == PagePlace::kFile) part.in_files.push_back(hash);
    } else if (allocator.reference_count(known) == 0 && !allocator.is_moving(known)) {
      --room[static_cast<std::size_t>(known.rank().value)];
      --total;
    }
  }
  for (std::size_t i = 0; i < part.pages.size(); ++i) {
    if (total-- <= 0) return part.pages[i];
    const PageRank home = part.places[i].rank;
    if (home.value < 0 || room[static_cast<std::size_t>(home.value)]-- > 0) continue;
    part.lacks_room = true;
    const auto at = static_cast<std::size_t>(part.pages[i]);
    const bool is_coming = coming_[group].contains(key.hashes()[at]);
    places[group][at] = {.where = is_coming ? PagePlace::kComing : PagePlace::kNowhere};
  }
  return pages;
}

/// Pins the run, and fills the pages that the device lacks. Without room, or if a file is bad,
/// returns nothing, and limits the next search as find_room, or to the page of the file.
std::optional<PrefixMatch> CacheTiers::bring_back(const PrefixKey& key, std::int64_t pages,
                                                  Places& places, std::int64_t& limit,
                                                  std::optional<Stream> after) {
  std::vector<Part> parts;
  if (!find_room(key, pages, places, limit, parts)) return std::nullopt;
  const PrefixMatch match = pin(key, pages, parts);
  Attempt attempt;
  limit = fill(key, pages, parts, match.pin, after, attempt);
  unpin_host(parts);
  limit == pages ? publish(match, key) : release(match);
  // Without files the other ranks have their pages, and the match. This rank's pages are published
  // as theirs are, but may be wrong, so none of its pages may go to a tier any more.
  if (!has_files(parts) && attempt.failed()) {
    if (!failure_) failure_ = attempt.failure();
    for (const auto& tiers : tiers_) tiers->copies().give_up();
  }
  attempt.rethrow();
  for (std::size_t g = 0; g < parts.size(); ++g) {
    if (limit == pages) {
      pages_back_ += std::ssize(parts[g].pages);
      tiers_[g]->loaded(parts[g].in_files);
    } else {
      distrust_run(g, key, limit, parts[g]);
    }
  }
  if (limit == pages) return match;
  places = no_places(key);  // the run has taken pages
  return std::nullopt;
}

/// Fills the pages of the parts. Returns the first one that did not come on some rank; `pages` if
/// all came, or if all come from host tiers, whose copies may be under way.
std::int64_t CacheTiers::fill(const PrefixKey& key, std::int64_t pages, std::span<const Part> parts,
                              SequenceId pin, std::optional<Stream> after, Attempt& attempt) {
  std::vector<Load> loads;
  start(key, parts, pin, after, attempt, loads);
  if (!has_files(parts)) return pages;
  std::int64_t first = 0, of_all = 0;
  attempt.always([&] { first = wait_for(loads, key, pages); });
  attempt.always([&] {
    of_all = least_of_all_ranks({&first, 1}, attempt, "read pages of a prefix in files").front();
  });
  return of_all;
}

/// Starts the loads of the parts' pages, after the stores of the pages that were evicted for them.
void CacheTiers::start(const PrefixKey& key, std::span<const Part> parts, SequenceId pin,
                       std::optional<Stream> after, Attempt& attempt, std::vector<Load>& loads) {
  attempt.always([&] { pages_taken(after); });
  attempt([&] { copy_after(after); });
  attempt([&] { submit_loads(key, parts, pin, loads); });
  attempt.always([&] {  // also of loads that were submitted before one could not be
    for (const auto& tiers : tiers_) tiers->copies().start();
  });
}

PrefixMatch CacheTiers::pin(const PrefixKey& key, std::int64_t pages, std::span<const Part> parts) {
  PrefixMatch match;
  for (std::size_t g = 0; g < parts.size(); ++g) {
    if (HostTier* const host = tiers_[g]->host()) host->pin(parts[g].in_host);
    std::vector<PageRank> homes;
    for (const PagePlace& from : parts[g].places) homes.push_back(from.rank);
    match = groups_[g].allocator.bring_back(key, pages, homes);
  }
  return match;
}

void CacheTiers::unpin_host(std::span<const Part> parts) {
  for (std::size_t g = 0; g < parts.size(); ++g)
    if (HostTier* const host = tiers_[g]->host()) host->unpin(parts[g].in_host);
}

void CacheTiers::publish(const PrefixMatch& match, const PrefixKey& key) {
  for (CacheGroup& group : groups_) group.allocator.publish(match.pin, key);
}

void CacheTiers::release(const PrefixMatch& match) {
  for (CacheGroup& group : groups_) group.allocator.release(match);
}

/// Adds the submitted loads to `loads`, also if a later one cannot be submitted.
void CacheTiers::submit_loads(const PrefixKey& key, std::span<const Part> parts, SequenceId pin,
                              std::vector<Load>& loads) {
  std::size_t pages = 0;
  for (const Part& part : parts) pages += part.pages.size();
  loads.reserve(pages);
  for (std::size_t g = 0; g < parts.size(); ++g) {
    const std::span<const PageId> table = groups_[g].allocator.pages(pin);
    for (std::size_t i = 0; i < parts[g].pages.size(); ++i) {
      const auto page = static_cast<std::size_t>(parts[g].pages[i]);
      const PagePlace& from = parts[g].places[i];
      loads.push_back({g, parts[g].pages[i], from.where == PagePlace::kFile, table[page],
                       tiers_[g]->load(key.hashes()[page], from, table[page])});
    }
  }
}

/// Returns the first page that did not come; `pages` if all came. The pages of files are complete
/// then; copies from the host tiers may be under way.
std::int64_t CacheTiers::wait_for(std::span<const Load> loads, const PrefixKey& key,
                                  std::int64_t pages) {
  // Other ranks wait in the exchange meanwhile, so a slow disk has half of their deadline.
  const auto end = std::chrono::steady_clock::now() + mesh_.world().deadline() / 2;
  bool is_late = false;
  for (const Load& load : loads) {
    const bool came = load.job.wait_until(end) == std::future_status::ready;
    is_late |= !came;
    if (came && load.job.get()) continue;
    pages = std::min(pages, load.page);
    if (load.from_file) distrust(load.group, key, load.page);
  }
  if (is_late)
    for (const auto& tiers : tiers_) tiers->file()->cancel_loads(FileFault::kIo);
  return pages;
}

void CacheTiers::distrust(std::size_t group, const PrefixKey& key, std::int64_t page) {
  tiers_[group]->file()->distrust(key.hashes()[static_cast<std::size_t>(page)]);
}

/// On every rank, after their loads of the run have ended: `page` did not come on some rank.
/// Whichever rank has the page next stores it anew.
void CacheTiers::distrust_run(std::size_t group, const PrefixKey& key, std::int64_t page,
                              const Part& part) {
  distrust(group, key, page);
  tiers_[group]->file()->forget_removed(part.in_files);
}

void CacheTiers::flush() {
  if (tiers_.front()->file() == nullptr) return;
  copy_after({});
  wait();  // the content of a page whose copy has failed must not be stored
  keep_failure([&] {
    for (const auto& tiers : tiers_) tiers->store_all();
    const std::chrono::milliseconds deadline = mesh_.world().deadline();
    for (const auto& tiers : tiers_)
      if (!tiers->file()->wait_for_stores(deadline))
        throw Timeout(mesh_.rank(), {}, "flush_tiers: writing files", deadline);
  });
}

TierStatistics CacheTiers::statistics() const {
  TierStatistics now{.pages_back = pages_back_};
  for (const auto& tiers : tiers_) tiers->add_to(now);
  return now;
}

}  // namespace kvmesh
