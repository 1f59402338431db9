// Sizes computed from a caller's numbers, with overflow checks.
#pragma once

#include <fmt/ranges.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <new>
#include <string_view>

#include "core/check.hpp"

namespace kvmesh {

/// Returns the product of `factors`. REQUIRES: none is negative.
/// @throws InvalidArgument, naming `what`, if the product does not fit in 63 bits.
inline std::int64_t checked_product(std::string_view what,
                                    std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  bool fits = true;
  for (std::int64_t factor : factors) {
    if (factor == 0) return 0;
    fits = !__builtin_mul_overflow(product, factor, &product) && fits;
  }
  require(fits, "{}: {} is past 2^63", what, fmt::join(factors, " x "));
  return product;
}

/// Returns the sum of `terms`. REQUIRES: none is negative. @throws InvalidArgument likewise.
inline std::int64_t checked_sum(std::string_view what, std::initializer_list<std::int64_t> terms) {
  std::int64_t sum = 0;
  bool fits = true;
  for (std::int64_t term : terms) fits = !__builtin_add_overflow(sum, term, &sum) && fits;
  require(fits, "{}: {} is past 2^63", what, fmt::join(terms, " + "));
  return sum;
}

/// Returns `bytes`, rounded up to a multiple of `unit`. @throws std::bad_alloc if the result
/// overflows.
inline std::size_t rounded_up(std::size_t bytes, std::size_t unit) {
  if (bytes > std::numeric_limits<std::size_t>::max() - unit) throw std::bad_alloc();
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace kvmesh
