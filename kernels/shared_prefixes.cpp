#include "kernels/shared_prefixes.hpp"

#include <algorithm>
#include <compare>
#include <cstring>
#include <functional>
#include <iterator>

#include "kernels/attend_steps.hpp"
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

/// The pages of which every token is written, none of them by this sequence's step.
std::span<const LocalPage> whole_pages(const AttendSequence& sequence, int page_size) {
  const std::int64_t written = sequence.kv_len - sequence.appended;
  std::span<const LocalPage> pages = sequence.pages;
  while (!pages.empty() && (std::int64_t{pages.back().logical} + 1) * page_size > written) {
    pages = pages.first(pages.size() - 1);
  }
  return pages;
}

class PrefixFinder {
 public:
  PrefixFinder(std::span<const AttendSequence> sequences, const SharedPrefixRules& rules)
      : rules_(rules) {
    whole_.reserve(sequences.size());
    for (std::int32_t s = 0; s < std::ssize(sequences); ++s) {
      const AttendSequence& sequence = sequences[static_cast<std::size_t>(s)];
      whole_.push_back(whole_pages(sequence, rules.page_size));
      if (sequence.queries > 0 && sequence.queries <= rules.most_queries) members_.push_back(s);
    }
  }

  std::vector<SharedPrefix> find() const {
    std::vector<SharedPrefix> found;
    add_best_of_parts(members_, 0, found);
    return found;
  }

 private:
  std::span<const LocalPage> pages_of(std::int32_t s) const {
    return whole_[static_cast<std::size_t>(s)];
  }

  /// Divides `members`, which have their first `at` pages in common, by the page after these.
  void add_best_of_parts(std::span<const std::int32_t> members, std::int64_t at,
                         std::vector<SharedPrefix>& found) const {
    struct Next {
      std::int32_t page, logical, sequence;
      auto operator<=>(const Next&) const = default;
    };
    std::vector<Next> next;  // sorted as it is, which costs less than by way of the lists
    next.reserve(members.size());
    for (const std::int32_t s : members) {
      if (std::ssize(pages_of(s)) <= at) continue;
      const LocalPage& page = pages_of(s)[static_cast<std::size_t>(at)];
      next.push_back({page.page, page.logical, s});
    }
    std::ranges::sort(next);
    for (auto begin = next.begin(); begin != next.end();) {
      const auto end = std::find_if(begin, next.end(), [&](const Next& it) {
        return it.page != begin->page || it.logical != begin->logical;
      });
      if (end - begin > 1) {
        std::vector<std::int32_t> part;
        std::transform(begin, end, std::back_inserter(part), std::mem_fn(&Next::sequence));
        add_best(std::move(part), found);
      }
      begin = end;
    }
  }

  /// The prefix of all members, or those of parts of them that go on together.
  void add_best(std::vector<std::int32_t> members, std::vector<SharedPrefix>& found) const {
    const std::span<const LocalPage> first = pages_of(members[0]);
    std::int64_t pages = std::ssize(first);
    for (const std::int32_t s : members) {
      pages = std::min(pages, common_pages(first, pages_of(s)));
    }
    std::vector<SharedPrefix> parts;
    add_best_of_parts(members, pages, parts);
    SharedPrefix all{.pages = pages, .sequences = std::move(members)};
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

  const SharedPrefixRules& rules_;
  std::vector<std::span<const LocalPage>> whole_;  // [sequences]
  std::vector<std::int32_t> members_;
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
    if (proved_value(mask, b, 0, q, kv).value_or(false)) {
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
