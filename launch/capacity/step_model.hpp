// How long a step takes on GPUs that nobody has at hand: bytes, rates, latencies.
#pragma once

#include <cstdint>

namespace kvmesh::capacity {

/// What a step is made of: a batch of equal sequences that decode, one query each.
struct Work {
  std::int64_t batch = 1;
  std::int64_t context = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  int element_bytes = 2;  ///< of keys and values
};

struct Cluster {
  int gpus = 1;
  int nodes = 1;  ///< that share the GPUs evenly
};

/// The constants of one kind of GPU. Those of `h200()` are fitted to measured points by
/// bench/step_model.py; those of more than two GPUs, and of the links between nodes, are assumed.
struct StepModel {
  double launch_us = 0;  ///< of the attention: launches, start-up, merge of splits
  double read_gbs = 0;   ///< keys and values of one GPU
  double append_us = 0;
  double combine_us = 0;  ///< of two GPUs: launches and latency, pack and merge
  double send_gbs = 0;    ///< partials that one GPU sends
  double hop_us = 0;      ///< more for each doubling of the GPUs beyond two
  double node_us = 0;     ///< more for partials that leave the node
  double node_gbs = 0;    ///< of them, the rate of one GPU
};
StepModel h200();

/// Keys and values of a rank that holds its even share of `tokens` tokens of one layer.
double layer_bytes(const Work& work, double tokens, int ranks);

/// The combine of `rows` rows of float32 partials to heads, all ranks taking part in all of them.
/// 0 on one GPU.
double combine_us(const StepModel& model, double rows, int v_dim, const Cluster& cluster);

/// Append, attention and combine of one layer: the fullest GPU's, as pages lie evenly.
double step_us(const StepModel& model, const Work& work, const Cluster& cluster);

/// Over how many GPUs, 1 or a divisor of cluster.gpus, one sequence of work.context tokens alone
/// is read fastest.
int best_parallelism(const StepModel& model, Work work, const Cluster& cluster);

/// From how many tokens on a sequence alone is read faster by all GPUs than by one; the home
/// threshold of a server that seldom has two sequences at a time.
std::int64_t spread_from_tokens(const StepModel& model, const Work& work, const Cluster& cluster);

}  // namespace kvmesh::capacity
