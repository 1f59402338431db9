// The data of a measurement: a cache full of sequences on scattered pages, and the tensors of its
// steps.
#pragma once

#include <vector>

#include "kvmesh/device_memory.hpp"
#include "kvmesh/kv_cache.hpp"
#include "launch/bench/machine.hpp"
#include "launch/bench/options.hpp"

namespace kvmesh::bench {

struct WorkloadShape {
  Shape model{};
  std::int64_t batch = 0;
  std::int64_t context = 0;
  Lengths lengths = Lengths::kEven;
  int layers = 1;
  std::int64_t shared_prefix = 0;      ///< tokens of whole pages that all sequences begin with
  std::vector<std::int64_t> listed{};  ///< of kListed; then batch and context are its size and mean
  /// With a window: the newest tokens of each sequence that plans append or query again. Pages that
  /// only earlier queries see were given up.
  std::int64_t again = 1;
};

/// A batch of sequences of these lengths.
WorkloadShape listed_shape(const Shape& model, const std::vector<std::int64_t>& listed);

/// Tokens of each sequence; their sum is batch * context (where they are listed: about). The same
/// on every rank.
std::vector<std::int64_t> lengths_of(const WorkloadShape& shape);
/// Returns the number of the newest `tokens` of each sequence; a shorter sequence counts whole.
std::int64_t newest(std::span<const std::int64_t> lengths, std::int64_t tokens);

/// Pages that a rank's pool must have.
std::int64_t pages_per_rank(const WorkloadShape& shape, int kv_parallel);
/// Bytes of this rank's pool of one layer with keys and values.
std::int64_t layer_bytes(const WorkloadShape& shape, const Mesh& mesh);
/// Bytes of this rank's pools of one layer of each kind (Shape::layer_kinds).
std::int64_t bytes_of_kinds(const WorkloadShape& shape, const Mesh& mesh);

/// The options of a cache with as many pages per rank, whose layers are all alike.
CacheOptions cache_options(const WorkloadShape& shape, std::int64_t pages);

/// A contiguous tensor on the device. It is made and filled again when a larger one is needed.
class GrowingTensor {
 public:
  /// [tokens, heads, dim], or [tokens, heads] where `dim` is 0.
  TensorView get(Mesh& mesh, Machine& machine, Dtype dtype, std::int64_t tokens, std::int64_t heads,
                 std::int64_t dim = 0);

 private:
  DeviceMemory memory_;
};

/// Collective to make. REQUIRES: all ranks use it in the same way.
class Workload {
 public:
  Workload(Mesh& mesh, Machine& machine, const WorkloadShape& shape);

  /// Plans a step of the whole batch: each sequence gets its last `append` tokens again and has
  /// `queries` newest queries; a shorter one has as many as its tokens. Valid until the next plan.
  StepPlan plan(std::int64_t append, std::int64_t queries, const PlanOptions& options);
  /// Plans such a step in place, with the options of `plan`.
  void replan(StepPlan& plan, std::int64_t append, std::int64_t queries, Stream stream);

  /// This rank's share of a plan with this many queries and new tokens.
  LayerInput input(const StepPlan& plan);
  /// The newest `queries` of each sequence.
  std::vector<BatchEntry> queried(std::int64_t queries) const;
  Partial partial(const StepPlan& plan);
  CombineOutput output(const StepPlan& plan);
  /// [q_heads], a sink for each of this rank's heads.
  ConstTensorView sinks();

  KvCache& cache() { return cache_; }
  const WorkloadShape& shape() const { return shape_; }
  std::span<const SequenceId> sequences() const { return sequences_; }
  std::span<const std::int64_t> lengths() const { return lengths_; }
  /// The layers with keys and values.
  std::span<const int> attended_layers() const { return attended_; }
  /// The layer of call number `call`: they take turns.
  int attended_layer(int call) const {
    return attended_[static_cast<std::size_t>(call) % attended_.size()];
  }
  Mesh& mesh() const { return mesh_; }

 private:
  void fill_pools();
  SequenceId with_a_state();
  void scatter_free_pages();
  void begin();
  void grow();
  /// Truncates the sequences by the tokens that a plan appends. Returns the plan's batch.
  std::vector<BatchEntry> truncated(std::int64_t append, std::int64_t queries);

  Mesh& mesh_;
  Machine& machine_;
  WorkloadShape shape_;
  std::vector<std::int64_t> lengths_;
  KvCache cache_;
  std::vector<int> attended_;
  std::vector<SequenceId> sequences_;
  GrowingTensor q_, k_, v_, o_, lse_, merged_, sinks_;
};

}  // namespace kvmesh::bench
