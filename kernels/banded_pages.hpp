// The pages that queries see by a mask that is a band, without a look at the mask.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/mods/band.hpp"
#include "kernels/mods/interval.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// Pages one after another, all of one class, kPartial or kFull; may be none.
struct BandedPages {
  std::span<const LocalPage> pages{};
  bool partial = false;
};

/// Returns the pages that any of the queries sees, in order: those that some query may not see
/// whole, those that all see whole, and again those of the first kind. `queries` are all positions
/// from the first to the last. REQUIRES: pages in ascending logical order, of `kv_len` tokens.
/// Takes a few searches, of one step each where the rank has all pages.
std::array<BandedPages, 3> pages_in_band(MaskBand band, PositionRange queries,
                                         std::span<const LocalPage> pages, int page_size,
                                         std::int64_t kv_len);

}  // namespace kvmesh
