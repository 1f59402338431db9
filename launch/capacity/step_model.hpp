// A model of the time of a step on GPUs that were not available for measurement: bytes, rates,
// latencies.
#pragma once

#include <cstdint>

namespace kvmesh::capacity {

/// The work of a step: a batch of equal sequences that decode, one query each.
struct Work {
  std::int64_t batch = 1;
  std::int64_t context = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  int element_bytes = 2;  ///< of a key or value element
};

struct Cluster {
  int gpus = 1;
  int nodes = 1;  ///< the GPUs are divided evenly among them
};

/// One way of the combine, between two GPUs.
struct WayModel {
  double start_us = 0;    ///< launches and latency, pack and merge
  double send_gbs = 0;    ///< rate at which one GPU sends partials
  int element_bytes = 0;  ///< of a partial; its LSE has four more
};

/// The constants of one kind of GPU. Those of `h200()` are fitted to measured points by
/// bench/step_model.py. The ones for more than two GPUs, and for the links between nodes, are
/// assumed.
struct StepModel {
  double launch_us = 0;  ///< of the attention: launches, start-up, merge of splits
  double read_gbs = 0;   ///< rate at which one GPU reads keys and values
  double append_us = 0;
  WayModel peer;        ///< taken inside a node
  WayModel nccl;        ///< taken between nodes
  double hop_us = 0;    ///< added per doubling of the GPUs beyond two
  double node_us = 0;   ///< added for partials that leave the node
  double node_gbs = 0;  ///< rate of such partials per GPU
};
StepModel h200();

/// Bytes of keys and values of a rank that holds its even share of `tokens` tokens of one layer.
double layer_bytes(const Work& work, double tokens, int ranks);

/// Time of the combine of `rows` rows to heads, with all ranks taking part in all rows. 0 on one
/// GPU. On several nodes the faster of two: flat, each partial straight to its owner; and
/// hierarchical, where each GPU of a node merges a share of the node's rows first.
double combine_us(const StepModel& model, double rows, int v_dim, const Cluster& cluster);

/// Time of append, attention and combine of one layer on the fullest GPU; pages are spread evenly.
double step_us(const StepModel& model, const Work& work, const Cluster& cluster);

/// Returns the number of GPUs, 1 or a divisor of cluster.gpus, over which one sequence of
/// work.context tokens alone is read fastest. They are on as few nodes as hold them, and divide
/// evenly over those.
int best_parallelism(const StepModel& model, Work work, const Cluster& cluster);

/// Returns the number of tokens from which all GPUs read a sequence alone faster than one does: the
/// home threshold of a server that seldom has two sequences at a time.
std::int64_t spread_from_tokens(const StepModel& model, const Work& work, const Cluster& cluster);

}  // namespace kvmesh::capacity
