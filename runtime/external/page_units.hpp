// Pages as kernels see them: whole, or cut into units of fewer tokens.
#pragma once

#include <cstdint>

#include "kvmesh/page_format.hpp"

namespace kvmesh {

/// How pages are cut. The units of a pool are the pages of a strided view: unit u begins u * unit
/// rows after the first, so a page begins at a whole number of units only if its stride lets it.
///
///   HND page [heads, 4 tokens], units of 2:  h0: u0 u1   h1: u0 u1  | next page: u4 u5
///                                             step = 4 units from a page to the next
struct PageUnits {
  int tokens = 0;             ///< of a unit
  std::int64_t per_page = 1;  ///< units
  std::int64_t step = 1;      ///< from a page's first unit to the next page's

  bool whole() const { return per_page == 1; }
  std::int64_t unit_of(std::int64_t page, std::int64_t in_page) const {
    return page * step + in_page;
  }
  /// Units of a pool, those that are no page's included.
  std::int64_t count(std::int64_t pages) const {
    return pages == 0 ? 0 : unit_of(pages - 1, per_page);
  }
};

/// The units of `tokens` tokens of pools that lie as `layer` does.
/// @throws InvalidArgument unless `tokens` divides the page size, and if the strides do not let
/// pages begin at whole units, the same for all planes, or there are too many.
PageUnits page_units(const ConstKvPool& layer, int tokens);

/// The pool whose pages are the units of `pool`.
/// @throws InvalidArgument if the strides of a tensor have another `step`.
KvPool in_units(const KvPool& pool, const PageUnits& units);

}  // namespace kvmesh
