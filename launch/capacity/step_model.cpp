#include "launch/capacity/step_model.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

namespace kvmesh::capacity {
namespace {

constexpr double kBytesPerUs = 1e3;  // of 1 GB/s

/// The GPUs in use, on as few nodes as hold them; none if they do not divide evenly over those.
std::optional<Cluster> part_of(const Cluster& cluster, int gpus) {
  const int per_node = std::max(1, cluster.gpus / cluster.nodes);
  const int nodes = (gpus + per_node - 1) / per_node;
  if (gpus % nodes != 0) return std::nullopt;
  return Cluster{.gpus = gpus, .nodes = nodes};
}

/// Returns the bytes that each of `gpus` GPUs sends if all have partials of `rows` rows.
double sent_bytes(const WayModel& way, double rows, int v_dim, double gpus) {
  return rows * (gpus - 1) / gpus * (way.element_bytes * v_dim + 4.0);
}

double exchange_us(const StepModel& model, const WayModel& way, double rows, int v_dim, int gpus) {
  return way.start_us + std::log2(gpus / 2.0) * model.hop_us +
         sent_bytes(way, rows, v_dim, gpus) / (way.send_gbs * kBytesPerUs);
}

}  // namespace

// The points are in bench/step_points.json; the fit is within 8 % of each. A bare exchange over
// peer memory took 0.8 us more on four GPUs than on two. Between nodes: 400 Gbit/s per GPU, and 5
// us for a message to the other end.
StepModel h200() {
  return {.launch_us = 6.584,
          .read_gbs = 4382,
          .append_us = 1.360,
          .peer = {.start_us = 3.073, .send_gbs = 220.4, .element_bytes = 2},
          .nccl = {.start_us = 11.95, .send_gbs = 122.7, .element_bytes = 4},
          .hop_us = 0.8,
          .node_us = 5,
          .node_gbs = 50};
}

double layer_bytes(const Work& work, double tokens, int ranks) {
  return tokens / ranks * work.kv_heads * (work.k_dim + work.v_dim) * work.element_bytes;
}

double combine_us(const StepModel& model, double rows, int v_dim, const Cluster& cluster) {
  if (cluster.gpus == 1) return 0;
  if (cluster.nodes == 1) return exchange_us(model, model.peer, rows, v_dim, cluster.gpus);
  const auto between_nodes = [&](double of_each, int gpus) {
    return exchange_us(model, model.nccl, of_each, v_dim, gpus) + model.node_us +
           sent_bytes(model.nccl, of_each, v_dim, cluster.nodes) / (model.node_gbs * kBytesPerUs);
  };
  const double flat = between_nodes(rows, cluster.gpus);
  const int per_node = cluster.gpus / cluster.nodes;
  if (per_node == 1) return flat;
  return std::min(flat, exchange_us(model, model.peer, rows, v_dim, per_node) +
                            between_nodes(rows / per_node, cluster.nodes));
}

double step_us(const StepModel& model, const Work& work, const Cluster& cluster) {
  const auto tokens = static_cast<double>(work.batch * work.context);
  const double bytes = layer_bytes(work, tokens, cluster.gpus);
  const auto rows = static_cast<double>(work.batch * work.q_heads);
  return model.launch_us + bytes / (model.read_gbs * kBytesPerUs) + model.append_us +
         combine_us(model, rows, work.v_dim, cluster);
}

int best_parallelism(const StepModel& model, Work work, const Cluster& cluster) {
  work.batch = 1;
  int best = 1;
  double least = std::numeric_limits<double>::infinity();
  for (int gpus = 1; gpus <= cluster.gpus; ++gpus) {
    const std::optional<Cluster> part = part_of(cluster, gpus);
    if (cluster.gpus % gpus != 0 || !part) continue;
    const double us = step_us(model, work, *part);
    if (us < least) best = gpus;
    least = std::min(least, us);
  }
  return best;
}

std::int64_t spread_from_tokens(const StepModel& model, const Work& work, const Cluster& cluster) {
  if (cluster.gpus == 1) return std::numeric_limits<std::int64_t>::max();
  const double saved_us = (layer_bytes(work, 1, 1) - layer_bytes(work, 1, cluster.gpus)) /
                          (model.read_gbs * kBytesPerUs);
  return static_cast<std::int64_t>(
      std::ceil(combine_us(model, work.q_heads, work.v_dim, cluster) / saved_us));
}

}  // namespace kvmesh::capacity
