// Division by a number that is known before a kernel starts, for the host, nvcc and NVRTC: it needs
// <cstdint> alone.
#pragma once

#include <cstdint>

namespace kvmesh {

/// Divides numbers below 2^31 by one multiplication and a shift, where a GPU's division takes some
/// twenty instructions.
///
/// With 2^(s-1) < d <= 2^s and m = ceil(2^(31+s) / d), n * m / 2^(31+s) exceeds n / d by less than
/// n / 2^(31+s) <= 2^-s <= 1 / d, which does not reach the next integer. m is below 2^32.
struct Divisor {
  std::uint32_t divisor = 1;
  std::uint32_t factor = 0;  ///< m
  std::uint32_t shift = 0;   ///< 31 + s

  constexpr Divisor() = default;
  /// REQUIRES: 0 <= by < 2^31. 0 becomes 1: nothing is divided by it.
  constexpr explicit Divisor(int by) : divisor(by < 1 ? 1 : static_cast<std::uint32_t>(by)) {
    std::uint32_t s = 0;
    while ((std::uint64_t{1} << s) < divisor) ++s;
    shift = 31 + s;
    factor = static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + divisor - 1) / divisor);
  }

  /// REQUIRES: 0 <= n < 2^31.
  constexpr int quotient(int n) const {
    return static_cast<int>(std::uint64_t{static_cast<std::uint32_t>(n)} * factor >> shift);
  }
  constexpr int remainder(int n, int quotient) const {
    return n - quotient * static_cast<int>(divisor);
  }
};

}  // namespace kvmesh
