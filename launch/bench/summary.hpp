// Median and spread.
#pragma once

#include <span>

namespace kvmesh::bench {

/// REQUIRES: at least one number. Percentiles are measured numbers: the nearest rank.
struct Summary {
  double median = 0;
  double p10 = 0;
  double p90 = 0;
  double min = 0;
  double max = 0;
};
Summary summarise(std::span<const double> values);

}  // namespace kvmesh::bench
