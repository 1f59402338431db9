// Loads of files that go on after the match that has started them.
#include <algorithm>
#include <map>
#include <utility>

#include "runtime/cache/cache_tiers.hpp"

namespace kvmesh {

PrefixMatch CacheTiers::match_now(const PrefixKey& key, std::optional<Stream> after) {
  std::int64_t coming = 0;
  if (needs_files(key)) {
    publish_loads(std::chrono::milliseconds(0));
    coming = start_loads(key, after) * key.rules().page_size;
  }
  PrefixMatch match = this->match(key, after, InFiles::kNo);
  match.loading = std::max<std::int64_t>(0, coming - match.tokens);
  return match;
}

/// Starts loads for the key if files have more of it. Returns how many leading pages are there or
/// coming; 0 if none is coming. Pages of the host tiers alone are not: for want of room they may
/// never come back.
std::int64_t CacheTiers::start_loads(const PrefixKey& key, std::optional<Stream> after) {
  Places places = no_places(key);
  for (std::int64_t limit = std::ssize(key.hashes());;) {
    leave_out_full(places, key, limit);
    const std::int64_t here = longest(places, key, limit, {});
    const std::int64_t coming = longest(places, key, limit, {.counts_coming = true});
    // Pages behind those that are being loaded wait for them: a pin has all pages before its own.
    // All ranks decide so without a message.
    if (coming > here) return coming;
    const Run run = agreed_run(places, key, limit, InFiles::kNow);
    if (run.pages <= here) return run.coming > here ? run.coming : 0;
    std::vector<Part> parts;
    if (!find_room(key, run.pages, places, limit, parts)) continue;
    load_run(key, run.pages, here, std::move(parts), after);
    return run.pages;
  }
}

/// Pins the run of `pages` pages and starts its loads, on all ranks or on none. The first `here`
/// pages, which come from the device and the host tiers, count as arrived, since all later work
/// waits for the copies.
void CacheTiers::load_run(const PrefixKey& key, std::int64_t pages, std::int64_t here,
                          std::vector<Part>&& parts, std::optional<Stream> after) {
  Loading made{.key = key, .pages = pages, .parts = std::move(parts)};
  made.key.truncate(pages * key.rules().page_size);
  made.pin = pin(made.key, pages, made.parts);
  Loading& loading = loadings_.emplace_back(std::move(made));
  for (std::size_t g = 0; g < groups_.size(); ++g)
    for (const std::int64_t page : loading.parts[g].pages)
      coming_[g].insert(key.hashes()[static_cast<std::size_t>(page)]);
  Attempt attempt;
  start(loading.key, loading.parts, loading.pin.pin, after, attempt, loading.loads);
  unpin_host(loading.parts);
  try {
    const std::int64_t started = 0;
    static_cast<void>(of_all_ranks({&started, 1}, attempt, "start loads of a prefix from files"));
  } catch (...) {
    give_up_loads();
    throw;
  }
  publish_arrived(loading, here);
}

/// Publishes the pages that have come on all ranks. Releases the runs whose loads have ended on all
/// ranks; the first page that has not come in such a run has failed on some rank. Waits for the
/// loads, at most for `most`; after a wait it gives up the late ones.
void CacheTiers::publish_loads(std::chrono::milliseconds most) {
  if (!is_loading()) return;
  const auto end = std::chrono::steady_clock::now() + most;
  std::vector<std::int64_t> mine;
  for (const Loading& loading : loadings_) {
    for (const Load& load : loading.loads)
      if (most.count() > 0 && load.job.wait_until(end) != std::future_status::ready) break;
    const Arrival arrival = arrived(loading);
    mine.insert(mine.end(), {arrival.pages, arrival.has_ended});
  }
  Attempt attempt;
  attempt([&] { check(); });
  const auto all = least_of_all_ranks(mine, attempt, "read pages of prefixes in files");
  std::vector<Loading> under_way;
  for (std::size_t i = 0; i < loadings_.size(); ++i) {
    Loading& loading = loadings_[i];
    publish_arrived(loading, all[2 * i]);
    if (all[2 * i + 1] == 1) {
      end_loads(loading);
    } else {
      under_way.push_back(std::move(loading));
    }
  }
  loadings_ = std::move(under_way);
  if (most.count() > 0) give_up_loads();
}

/// Returns how much of a run has come on this rank. Pages of host tiers have: all later work waits
/// for their copies.
CacheTiers::Arrival CacheTiers::arrived(const Loading& loading) {
  Arrival arrival{.pages = loading.pages};
  for (const Load& load : loading.loads) {
    if (!load.from_file) continue;
    const bool has_ended = completed(load.job);
    if (!has_ended || !load.job.get()) arrival.pages = std::min(arrival.pages, load.page);
    arrival.has_ended &= has_ended;
  }
  return arrival;
}

/// Gives back the pages that have not come.
void CacheTiers::end_loads(const Loading& loading) {
  for (const Load& load : loading.loads)
    coming_[load.group].erase(loading.key.hashes()[static_cast<std::size_t>(load.page)]);
  for (std::size_t g = 0; g < groups_.size() && loading.arrived < loading.pages; ++g)
    distrust_run(g, loading.key, loading.arrived, loading.parts[g]);
  release(loading.pin);
}

/// Publishes the first `pages` pages of the run.
void CacheTiers::publish_arrived(Loading& loading, std::int64_t pages) {
  if (pages <= loading.arrived) return;
  PrefixKey key = loading.key;
  key.truncate(pages * key.rules().page_size);
  publish(loading.pin, key);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const Part& part = loading.parts[g];
    std::vector<PageHash> from_files;
    for (std::size_t i = 0; i < part.pages.size(); ++i) {
      if (part.pages[i] < loading.arrived || part.pages[i] >= pages) continue;
      const PageHash& hash = key.hashes()[static_cast<std::size_t>(part.pages[i])];
      ++pages_back_;
      coming_[g].erase(hash);
      if (part.places[i].where == PagePlace::kFile) from_files.push_back(hash);
    }
    tiers_[g]->loaded(from_files);
  }
  std::erase_if(loading.loads, [&](const Load& load) { return load.page < pages; });
  loading.arrived = pages;
}

std::int64_t CacheTiers::pages_to_give_up(std::size_t group) const {
  const PageAllocator& allocator = groups_[group].allocator;
  std::map<PageId, std::int32_t> pins;  // of each page
  for (const Loading& loading : loadings_)
    for (const PageId page : allocator.pages(loading.pin.pin))
      if (page.valid()) ++pins[page];
  return std::ranges::count_if(pins, [&](const auto& pinned) {
    return allocator.reference_count(pinned.first) == pinned.second;
  });
}

void CacheTiers::give_up_loads() {
  if (!is_loading()) return;
  for (const auto& tiers : tiers_) tiers->file()->cancel_loads();
  for (const Loading& loading : loadings_) release(loading.pin);
  for (auto& of_group : coming_) of_group.clear();
  loadings_.clear();
}

bool CacheTiers::loads_to(std::span<const std::vector<PageCopy>> copies) const {
  const auto is_source = [&](const Load& load) {
    return std::ranges::any_of(copies[load.group],
                               [&](const PageCopy& copy) { return copy.source == load.to; });
  };
  return std::ranges::any_of(loadings_, [&](const Loading& loading) {
    return std::ranges::any_of(loading.loads, is_source);
  });
}

}  // namespace kvmesh
