// The pages that queries see by a mask that is a band, without a look at the mask.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/pod/divisor.hpp"
#include "kernels/mods/band.hpp"
#include "kernels/mods/interval.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// The pages of a list that queries see: [begin, full) and [after, end) are seen by some query and
/// may not be seen whole by all, [full, after) are seen whole by all.
struct BandedPages {
  std::size_t begin = 0;
  std::size_t full = 0;
  std::size_t after = 0;
  std::size_t end = 0;
};

/// Returns the pages that any of the queries sees. `queries` are all positions from the first to
/// the last. REQUIRES: pages in ascending logical order, of `kv_len` tokens. Takes a few searches,
/// or subtractions where the rank has all pages.
BandedPages pages_in_band(MaskBand band, PositionRange queries, std::span<const LocalPage> pages,
                          Divisor page_size, std::int64_t kv_len);

}  // namespace kvmesh
