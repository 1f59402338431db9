#include "launch/bench/summary.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvmesh::bench {

Summary summarise(std::span<const double> values) {
  std::vector<double> sorted(values.begin(), values.end());
  std::ranges::sort(sorted);
  const auto at = [&](double fraction) {
    const double rank = std::ceil(fraction * static_cast<double>(sorted.size()));
    return sorted.at(static_cast<std::size_t>(std::max(rank, 1.0)) - 1);
  };
  return {.median = at(0.5), .p10 = at(0.1), .p90 = at(0.9), .min = at(0), .max = at(1)};
}

}  // namespace kvmesh::bench
