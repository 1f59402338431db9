#include "kernels/cpu/plan/banded_pages.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

/// Pages in ascending logical order.
class PagesInOrder {
 public:
  explicit PagesInOrder(std::span<const LocalPage> pages)
      : pages_(pages),
        first_(pages.empty() ? 0 : pages.front().logical),
        has_all_(!pages.empty() && pages.back().logical - first_ + 1 == std::ssize(pages)) {}

  /// The number of pages before `logical`.
  std::size_t before(std::int64_t logical) const {
    // A rank has each page once, so page i is at least the i-th from the first.
    const auto most =
        static_cast<std::size_t>(std::clamp<std::int64_t>(logical - first_, 0, std::ssize(pages_)));
    if (has_all_) return most;
    const auto found =
        std::ranges::lower_bound(pages_.first(most), logical, {}, &LocalPage::logical);
    return static_cast<std::size_t>(found - pages_.begin());
  }

 private:
  std::span<const LocalPage> pages_;
  std::int64_t first_;
  bool has_all_;  ///< from the first to the last
};

}  // namespace

// Keys in [some.begin, some.end) are seen by a query, those in [all.begin, all.end) by all:
//
//   q - kv < band.end                                  q - kv >= band.begin
//          the first query                                    the last query
//   ───────┼────────────────┼─────────────────┼─────────────────┼────────► kv
//      some.begin       all.begin          all.end          some.end
BandedPages pages_in_band(MaskBand band, PositionRange queries, std::span<const LocalPage> pages,
                          Divisor page_size, std::int64_t kv_len) {
  const std::int64_t first = queries.begin, last = queries.end - 1;
  const std::int64_t some_begin = std::max<std::int64_t>(0, first - band.end + 1);
  const std::int64_t some_end = std::clamp<std::int64_t>(last - band.begin + 1, 0, kv_len);
  const std::int64_t all_begin = std::clamp<std::int64_t>(last - band.end + 1, 0, kv_len);
  const std::int64_t all_end = std::clamp<std::int64_t>(first - band.begin + 1, 0, kv_len);
  if (band.begin >= band.end || some_begin >= some_end) return {};
  const auto page_of = [&](std::int64_t key) {
    return std::int64_t{page_size.quotient(static_cast<int>(key))};
  };
  const auto page_up = [&](std::int64_t key) { return key == 0 ? 0 : page_of(key - 1) + 1; };
  const PagesInOrder order(pages);
  const std::size_t begin = order.before(page_of(some_begin));
  const std::size_t end = order.before(page_up(some_end));
  // The sequence's last page ends with the sequence.
  const std::int64_t full_end = all_end == kv_len ? page_up(kv_len) : page_of(all_end);
  const std::size_t full = std::clamp(order.before(page_up(all_begin)), begin, end);
  const std::size_t after = std::clamp(order.before(full_end), full, end);
  return {begin, full, after, end};
}

}  // namespace kvmesh
