#include "comm/combine/choice/way_table.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

Scatter measured_as(Scatter scatter) {
  return scatter == Scatter::kTokens ? Scatter::kHeads : scatter;
}

template <class Ways>
auto find(Ways& ways, const WayStrategy& way, Scatter scatter) {
  return std::ranges::find_if(ways, [&](const WayTimes& each) {
    return each.way == way && each.scatter == measured_as(scatter);
  });
}

}  // namespace

double WayTimes::microseconds(double bytes) const {
  if (bytes <= times.front().bytes) return times.front().microseconds;
  const auto within = std::ranges::lower_bound(times, bytes, {}, &CombineTime::bytes);
  const auto to = within == times.end() ? times.end() - 1 : within;
  const auto from = to - 1;
  const double slope = (to->microseconds - from->microseconds) / (to->bytes - from->bytes);
  const bool is_past = bytes > to->bytes;
  return to->microseconds + (bytes - to->bytes) * (is_past ? std::max(slope, 0.0) : slope);
}

void WayTable::add(const WayStrategy& way, Scatter scatter, const CombineTime& time) {
  auto found = find(ways, way, scatter);
  if (found == ways.end()) {
    ways.push_back({.way = way, .scatter = measured_as(scatter), .times = {}});
    found = ways.end() - 1;
  }
  found->times.push_back(time);
}

std::optional<double> WayTable::microseconds(const WayStrategy& way, Scatter scatter,
                                             double bytes) const {
  const auto found = find(ways, way, scatter);
  if (found == ways.end() || found->times.size() < 2) return std::nullopt;
  return found->microseconds(bytes);
}

std::optional<double> least_microseconds(const WayTable& table, Scatter scatter,
                                         const CombineShape& shape) {
  std::optional<double> least;
  for (const WayTimes& each : table.ways) {
    const auto time = table.microseconds(each.way, scatter, table_bytes(shape));
    if (time && (!least || *time < *least)) least = time;
  }
  return least;
}

double table_bytes(const CombineShape& shape) {
  return static_cast<double>(shape.rows()) * static_cast<double>(shape.dim + 1) * sizeof(float);
}

WayStrategy fastest(const WayTable& table, const std::vector<WayStrategy>& ways, Scatter scatter,
                    const CombineShape& shape) {
  constexpr double kClearlyFaster = 7.0 / 8;
  const double bytes = table_bytes(shape);
  WayStrategy best = ways.front();
  const std::optional<double> usual = table.microseconds(best, scatter, bytes);
  if (!usual) return best;
  double least = *usual * kClearlyFaster;
  for (const WayStrategy& way : ways) {
    const std::optional<double> time = table.microseconds(way, scatter, bytes);
    if (!time || *time >= least) continue;
    best = way;
    least = *time;
  }
  return best;
}

}  // namespace kvmesh
