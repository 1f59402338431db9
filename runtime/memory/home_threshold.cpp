#include "runtime/memory/home_threshold.hpp"

#include <cmath>

#include "runtime/memory/layer_groups.hpp"

namespace kvmesh {
namespace {

double token_bytes(const PageFormat& page) {
  double bytes = 0;
  for (const PagePlane& plane : page.planes) {
    bytes += static_cast<double>(page.heads) * plane.elements *
             static_cast<double>(size_bytes(plane.dtype));
  }
  return bytes;
}

}  // namespace

std::optional<std::int64_t> measured_home_threshold(const WayTable& table, const CombineShape& rows,
                                                    double token_bytes, int ranks) {
  const auto combine_us = least_microseconds(table, Scatter::kHeads, rows);
  if (!combine_us || table.read_gbs <= 0) return std::nullopt;
  const double saved_bytes = token_bytes * (ranks - 1) / ranks;  // per token
  const double bytes_per_us = table.read_gbs * 1e3;
  return static_cast<std::int64_t>(std::ceil(*combine_us * bytes_per_us / saved_bytes));
}

std::int64_t agreed_home_threshold(Mesh& mesh, const CacheOptions& options) {
  if (options.home_threshold_tokens != kMeasuredHomeThreshold) return options.home_threshold_tokens;
  std::int64_t tokens = CacheOptions{}.home_threshold_tokens;
  const WayTable* const table = mesh.device_group().way_table();
  if (table != nullptr && !options.reproducible) {
    const CacheOptions group = options_of_groups(options).front();
    const LocalShape shape = local_shape(mesh, group);
    const CombineShape rows{1, shape.attention.q_heads, shape.attention.v_dim};
    tokens = measured_home_threshold(*table, rows, token_bytes(page_format(shape, group)),
                                     mesh.kv_parallel())
                 .value_or(tokens);
  }
  // With head_parallel each column of the mesh has a table of its own.
  broadcast_value(mesh.world(), Rank{0}, tokens, "agree on the home threshold");
  return tokens;
}

}  // namespace kvmesh
