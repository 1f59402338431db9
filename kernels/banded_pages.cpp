#include "kernels/banded_pages.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

/// The number of pages before `logical`.
std::size_t pages_before(std::span<const LocalPage> pages, std::int64_t logical) {
  if (pages.empty() || logical <= pages.front().logical) return 0;
  // A rank has each page once, so page i is at least the i-th from the first.
  const auto most =
      std::min(pages.size(), static_cast<std::size_t>(logical - pages.front().logical));
  const auto passed = static_cast<std::int64_t>(most) - 1;
  if (pages[most - 1].logical == pages.front().logical + passed) return most;
  const auto found = std::ranges::lower_bound(pages.first(most), logical, {}, &LocalPage::logical);
  return static_cast<std::size_t>(found - pages.begin());
}

}  // namespace

// Keys in [some.begin, some.end) are seen by a query, those in [all.begin, all.end) by all:
//
//   q - kv < band.end                                  q - kv >= band.begin
//          the first query                                    the last query
//   ───────┼────────────────┼─────────────────┼─────────────────┼────────► kv
//      some.begin       all.begin          all.end          some.end
std::array<BandedPages, 3> pages_in_band(MaskBand band, PositionRange queries,
                                         std::span<const LocalPage> pages, int page_size,
                                         std::int64_t kv_len) {
  const std::int64_t first = queries.begin, last = queries.end - 1;
  const std::int64_t some_begin = std::max<std::int64_t>(0, first - band.end + 1);
  const std::int64_t some_end = std::clamp<std::int64_t>(last - band.begin + 1, 0, kv_len);
  const std::int64_t all_begin = std::max<std::int64_t>(0, last - band.end + 1);
  const std::int64_t all_end = std::clamp<std::int64_t>(first - band.begin + 1, 0, kv_len);
  if (band.begin >= band.end || some_begin >= some_end) return {};
  const auto page_up = [&](std::int64_t key) { return (key + page_size - 1) / page_size; };
  const std::size_t begin = pages_before(pages, some_begin / page_size);
  const std::size_t end = pages_before(pages, page_up(some_end));
  // The sequence's last page ends with the sequence.
  const std::int64_t full_end = all_end == kv_len ? page_up(kv_len) : all_end / page_size;
  const std::size_t full = std::clamp(pages_before(pages, page_up(all_begin)), begin, end);
  const std::size_t after = std::clamp(pages_before(pages, full_end), full, end);
  const auto part = [&](std::size_t from, std::size_t to) {
    return pages.subspan(from, to - from);
  };
  return {BandedPages{part(begin, full), true}, BandedPages{part(full, after), false},
          BandedPages{part(after, end), true}};
}

}  // namespace kvmesh
