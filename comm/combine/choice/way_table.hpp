// The times that the ways of a group of ranks were measured to take.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "comm/combine/rows.hpp"

namespace kvmesh {

/// A way with one of its strategies.
struct WayStrategy {
  WayKind way = WayKind::kHost;
  CombineStrategy strategy = CombineStrategy::kAllToAll;  ///< not kAuto
  friend bool operator==(const WayStrategy&, const WayStrategy&) = default;
};

/// One combine took `microseconds`, with partials of `bytes` on each rank.
struct CombineTime {
  double bytes = 0;
  double microseconds = 0;
  friend bool operator==(const CombineTime&, const CombineTime&) = default;
};

/// The times of a way for one scatter, by rising bytes.
struct WayTimes {
  WayStrategy way;
  Scatter scatter = Scatter::kHeads;
  std::vector<CombineTime> times;
  /// Interpolates linearly between two times. Below the first size it returns the first time, since
  /// that is latency; past the last it follows the line through the last two, if that rises.
  /// REQUIRES: two times or more.
  double microseconds(double bytes) const;
  friend bool operator==(const WayTimes&, const WayTimes&) = default;
};

/// Equal on all ranks of the group.
struct WayTable {
  std::vector<WayTimes> ways;
  /// The rate in GB/s at which the slowest rank's GPU reads its memory; 0: not measured, as on
  /// CPUs, whose attention their memory does not bound.
  double read_gbs = 0;

  /// REQUIRES: `bytes` are more than those of the last call for this way and scatter.
  void add(const WayStrategy& way, Scatter scatter, const CombineTime& time);
  /// Returns the estimated time; empty if the way was not measured with two sizes or more.
  /// Scatter::kTokens counts as kHeads, which sends as many bytes.
  std::optional<double> microseconds(const WayStrategy& way, Scatter scatter, double bytes) const;
  friend bool operator==(const WayTable&, const WayTable&) = default;
};

/// Returns the time of the fastest way; empty if none was measured for this scatter.
std::optional<double> least_microseconds(const WayTable& table, Scatter scatter,
                                         const CombineShape& shape);

/// The bytes by which the table is sorted: a partial's rows, as float32 with their LSEs.
double table_bytes(const CombineShape& shape);

/// Returns the fastest of `ways` for the rows, but `ways.front()` unless another one takes less
/// than 7/8 of its time: times differ from run to run, and a change of ways may change the last
/// bits of the sums. `ways.front()` also if it was not measured. REQUIRES: not empty.
WayStrategy fastest(const WayTable& table, const std::vector<WayStrategy>& ways, Scatter scatter,
                    const CombineShape& shape);

}  // namespace kvmesh
