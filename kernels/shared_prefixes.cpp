#include "kernels/shared_prefixes.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/attend_work.hpp"
#include "kernels/mods/interval.hpp"

namespace kvmesh {
namespace {

/// Returns the number of first pages that both lists have in common.
std::int64_t common_pages(std::span<const LocalPage> a, std::span<const LocalPage> b) {
  constexpr std::size_t kStep = 64;
  const std::size_t end = std::min(a.size(), b.size());
  std::size_t at = 0;
  while (at + kStep <= end &&
         std::memcmp(a.data() + at, b.data() + at, kStep * sizeof(LocalPage)) == 0) {
    at += kStep;
  }
  while (at < end && a[at] == b[at]) ++at;
  return static_cast<std::int64_t>(at);
}

class PrefixFinder {
 public:
  PrefixFinder(std::span<const AttendSequence> sequences, const SharedPrefixRules& rules)
      : sequences_(sequences), rules_(rules) {}

  std::vector<SharedPrefix> find() const {
    std::vector<std::int32_t> members;
    for (std::int32_t s = 0; s < std::ssize(sequences_); ++s) {
      const std::int64_t queries = sequences_[static_cast<std::size_t>(s)].queries;
      if (queries > 0 && queries <= rules_.most_queries && !whole_pages(s).empty()) {
        members.push_back(s);
      }
    }
    std::vector<SharedPrefix> found;
    add_best_of_parts(members, 0, found);
    return found;
  }

 private:
  /// The pages of which every token is written.
  std::span<const LocalPage> whole_pages(std::int32_t s) const {
    const AttendSequence& sequence = sequences_[static_cast<std::size_t>(s)];
    std::span<const LocalPage> pages = sequence.pages;
    while (!pages.empty() &&
           (std::int64_t{pages.back().logical} + 1) * rules_.page_size > sequence.kv_len) {
      pages = pages.first(pages.size() - 1);
    }
    return pages;
  }

  /// Divides `members`, which have their first `at` pages in common, by the page after these.
  void add_best_of_parts(std::vector<std::int32_t>& members, std::int64_t at,
                         std::vector<SharedPrefix>& found) const {
    const auto page = static_cast<std::size_t>(at);
    std::erase_if(members, [&](std::int32_t s) { return whole_pages(s).size() <= page; });
    const auto next = [&](std::int32_t s) {
      const LocalPage it = whole_pages(s)[page];
      return std::pair(it.page, it.logical);
    };
    std::ranges::stable_sort(members, {}, next);
    for (auto begin = members.begin(); begin != members.end();) {
      const auto end =
          std::find_if(begin, members.end(), [&](auto s) { return next(s) != next(*begin); });
      if (end - begin > 1) add_best({begin, end}, found);
      begin = end;
    }
  }

  /// The prefix of all members, or those of parts of them that go on together.
  void add_best(std::vector<std::int32_t> members, std::vector<SharedPrefix>& found) const {
    const std::span<const LocalPage> first = whole_pages(members[0]);
    SharedPrefix all{.pages = std::ssize(first), .sequences = members};
    for (const std::int32_t s : members) {
      all.pages = std::min(all.pages, common_pages(first, whole_pages(s)));
    }
    std::vector<SharedPrefix> parts;
    add_best_of_parts(members, all.pages, parts);
    std::int64_t saved = 0;
    for (const SharedPrefix& part : parts) saved += saved_pages(part);
    if (saved <= saved_pages(all)) {
      parts.clear();
      if (rules_.pays(all)) parts.push_back(std::move(all));
    }
    std::ranges::move(parts, std::back_inserter(found));
  }

  static std::int64_t saved_pages(const SharedPrefix& prefix) {
    return (std::ssize(prefix.sequences) - 1) * prefix.pages;
  }

  std::span<const AttendSequence> sequences_;
  const SharedPrefixRules& rules_;
};

/// The positions of a sequence's queries.
PositionRange positions_of(const AttendSteps& steps, std::int32_t s, std::int64_t first_token) {
  const AttendSequence& sequence = steps.sequences[static_cast<std::size_t>(s)];
  if (steps.q_positions.empty()) {
    return {static_cast<std::int32_t>(sequence.kv_len - sequence.queries),
            static_cast<std::int32_t>(sequence.kv_len)};
  }
  const auto [low, high] = std::ranges::minmax(steps.q_positions.subspan(
      static_cast<std::size_t>(first_token), static_cast<std::size_t>(sequence.queries)));
  return {static_cast<std::int32_t>(low), static_cast<std::int32_t>(high + 1)};
}

/// Returns how many of the first pages queries at any of `q` see whole, by halves: what is proved
/// of a range of keys is proved of each part of it.
std::int64_t pages_seen_by(const ModGraph& mask, std::int32_t b, PositionRange q,
                           std::span<const LocalPage> pages, int page_size) {
  std::int64_t low = 0, high = std::ssize(pages);
  for (std::int64_t at = high; low < high; at = (low + high + 1) / 2) {
    const LocalPage& last = pages[static_cast<std::size_t>(at) - 1];
    const PositionRange kv{pages[0].logical * page_size, (last.logical + 1) * page_size};
    if (classify_by_interval(mask, b, 0, q, kv) == TileClass::kFull) {
      low = at;
    } else {
      high = at - 1;
    }
  }
  return low;
}

}  // namespace

std::vector<SharedPrefix> find_shared_prefixes(std::span<const AttendSequence> sequences,
                                               const SharedPrefixRules& rules) {
  if (sequences.size() < 2) return {};
  return PrefixFinder(sequences, rules).find();
}

std::int64_t pages_seen_whole(const ModGraph& mask, const AttendSteps& steps,
                              std::span<const std::int64_t> first_tokens,
                              const SharedPrefix& prefix, int page_size) {
  if (mask.depends_on(kDependsHead)) return 0;
  const auto first = static_cast<std::size_t>(prefix.sequences[0]);
  std::span<const LocalPage> pages =
      steps.sequences[first].pages.first(static_cast<std::size_t>(prefix.pages));
  const bool by_row = mask.depends_on(kDependsBatch);
  PositionRange all = positions_of(steps, prefix.sequences[0], first_tokens[first]);
  for (const std::int32_t s : prefix.sequences) {
    const PositionRange q = positions_of(steps, s, first_tokens[static_cast<std::size_t>(s)]);
    all = {std::min(all.begin, q.begin), std::max(all.end, q.end)};
    if (!by_row) continue;
    const std::int64_t seen = pages_seen_by(mask, s, q, pages, page_size);
    pages = pages.first(static_cast<std::size_t>(seen));
  }
  return by_row ? std::ssize(pages) : pages_seen_by(mask, 0, all, pages, page_size);
}

}  // namespace kvmesh
