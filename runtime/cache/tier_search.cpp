// The longest run of a key that device and tiers have.
#include <algorithm>
#include <array>

#include "runtime/cache/cache_tiers.hpp"

namespace kvmesh {

/// The first page that the query after `pages` pages sees.
std::int64_t CacheTiers::first_seen(std::size_t group, const PrefixKey& key,
                                    std::int64_t pages) const {
  const std::int64_t window = groups_[group].options.window, size = key.rules().page_size;
  return window == 0 ? 0 : std::max<std::int64_t>(pages * size - window + 1, 0) / size;
}

CacheTiers::Places CacheTiers::no_places(const PrefixKey& key) const {
  Places places(groups_.size());
  for (auto& of_group : places) of_group.resize(key.hashes().size());
  return places;
}

PagePlace CacheTiers::place(Places& places, std::size_t group, const PrefixKey& key,
                            std::int64_t page, InFiles in_files) {
  const auto at = static_cast<std::size_t>(page);
  const PageHash& hash = key.hashes()[at];
  std::optional<PagePlace>& known = places[group][at];
  if (!known) {
    known = tiers_[group]->find(hash);
    if (known->where == PagePlace::kNowhere && coming_[group].contains(hash))
      known->where = PagePlace::kComing;
  }
  if (known->where == PagePlace::kNowhere) known = tiers_[group]->find_file(hash, in_files);
  return *known;
}

/// The most leading pages, up to `most`, of which the group has those that the next query sees.
std::int64_t CacheTiers::run_of(std::size_t group, Places& places, const PrefixKey& key,
                                std::int64_t most, Looks looks) {
  const auto has = [&](std::int64_t page) {
    const PagePlace::Where where = place(places, group, key, page, looks.in_files).where;
    if (where == PagePlace::kComing) return looks.counts_coming;
    if (where == PagePlace::kFile) return looks.in_files != InFiles::kNo;
    return where != PagePlace::kNowhere;
  };
  const std::int64_t window = groups_[group].options.window;
  if (window == 0) {
    std::int64_t pages = 0;
    while (pages < most && has(pages)) ++pages;
    return pages;
  }
  std::int64_t end = most;
  for (std::int64_t first = end; first > first_seen(group, key, end);)
    if (!has(--first)) end = first;
  return end;
}

/// The longest run, up to `most` pages, that all groups have.
std::int64_t CacheTiers::longest(Places& places, const PrefixKey& key, std::int64_t most,
                                 Looks looks) {
  for (std::int64_t before = -1; most != before;) {
    before = most;
    for (std::size_t g = 0; g < groups_.size(); ++g) most = run_of(g, places, key, most, looks);
  }
  return most;
}

/// Leaves pages of host tiers that have no room on their ranks out of the search, as far as a run
/// of up to `most` pages without files has some. It comes before the first exchange: a rank that
/// throws where nothing is exchanged must not miss an exchange that the others make later.
void CacheTiers::leave_out_full(Places& places, const PrefixKey& key, std::int64_t most) {
  const auto is_in_host = [](const std::optional<PagePlace>& known) {
    return known && known->where == PagePlace::kHost;
  };
  const auto some_in_host = [&](const auto& group) {
    return std::ranges::any_of(group, is_in_host);
  };
  std::vector<Part> parts;
  do {
    most = longest(places, key, most, {});
  } while (std::ranges::any_of(places, some_in_host) && !find_room(key, most, places, most, parts));
}

/// Whether some full page of the key is neither on the device nor can come back from a host tier.
bool CacheTiers::needs_files(const PrefixKey& key) {
  if (tiers_.front()->file() == nullptr) return false;
  const std::int64_t pages = std::ssize(key.hashes());
  Places places = no_places(key);
  leave_out_full(places, key, pages);
  return longest(places, key, pages, {}) < pages;
}

/// Returns the longest run that all ranks have. A page that some rank is storing in a file counts
/// as coming: the other ranks find the file later.
CacheTiers::Run CacheTiers::agreed_run(Places& places, const PrefixKey& key, std::int64_t most,
                                       InFiles in_files) {
  const std::int64_t without_files = longest(places, key, most, {});
  if (without_files == most || in_files == InFiles::kNo || tiers_.front()->file() == nullptr) {
    check();  // no other rank waits for this one
    return {without_files, without_files};
  }
  for (;;) {
    std::array<std::int64_t, 2> mine{};
    Attempt attempt;
    attempt([&] {
      keep_failure([&] {
        mine = {longest(places, key, most, {in_files}),
                longest(places, key, most, {in_files, true})};
      });
    });
    const auto all = of_all_ranks(mine, attempt, "find pages of a prefix in files");
    Run least{most, 0}, largest;
    for (std::size_t i = 0; i < all.size(); i += 2) {
      least.pages = std::min(least.pages, all[i]);
      largest = {std::max(largest.pages, all[i]), std::max(largest.coming, all[i + 1])};
    }
    most = least.pages;
    if (largest.pages == most) return {most, largest.coming};
  }
}

}  // namespace kvmesh
