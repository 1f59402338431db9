#include "launch/bench/fork_time.hpp"

#include <vector>

#include "launch/bench/host_turns.hpp"

namespace kvmesh::bench {
namespace {

/// A cache of the batch with room for a fork of each sequence.
CacheOptions options_with_room(const WorkloadShape& shape, const Mesh& mesh,
                               std::int64_t state_bytes, std::int64_t tokens) {
  const std::int64_t page = shape.model.page_size;
  const std::int64_t of_fork = (tokens + page - 1) / page + 1;
  const std::int64_t pages = pages_per_rank(shape, mesh.kv_parallel()) + shape.batch * of_fork;
  CacheOptions options = cache_options(shape, pages);
  if (state_bytes == 0) return options;
  const double states = 2 * static_cast<double>(shape.batch);  // of each sequence and its fork
  LayerGroup group{.page_share = states / static_cast<double>(pages), .state_bytes = state_bytes};
  for (int layer = 1; layer < shape.layers; layer += 2) group.layers.push_back(layer);
  options.groups = {group};
  return options;
}

class Forks {
 public:
  Forks(const WorkloadShape& shape, Mesh& mesh, std::int64_t state_bytes, std::int64_t tokens)
      : cache_(mesh, options_with_room(shape, mesh, state_bytes, tokens)),
        plan_(cache_.plan({}, {})),
        tokens_(tokens) {
    std::vector<BatchEntry> batch;
    for (const std::int64_t length : lengths_of(shape)) {
      sequences_.push_back(cache_.create());
      batch.push_back({sequences_.back(), length, 0});
    }
    cache_.replan(plan_, batch);
  }

  /// Returns the bytes that a time copies on a rank of the head axis, on all kv ranks together.
  std::int64_t copied_bytes() {
    std::int64_t bytes = 0;
    for (int layer = 0; layer < cache_.options().layers; ++layer) {
      const CacheOptions group = cache_.group_options(cache_.group_of(layer));
      for (const TensorView& plane : cache_.planes(layer)) {
        const std::int64_t rows = group.state_bytes > 0 ? std::ssize(sequences_) : tokens_to_copy();
        const std::int64_t elements = plane.size(1) * plane.size(3);
        bytes += rows * elements * static_cast<std::int64_t>(size_bytes(plane.dtype));
      }
    }
    return bytes;
  }

  /// Returns the seconds of one time.
  double once() {
    std::vector<BatchEntry> batch;
    barrier(cache_.mesh().world(), "bench: forks");
    const double seconds = seconds_of([&] {
      for (const SequenceId sequence : sequences_)
        batch.push_back({cache_.fork(sequence), tokens_, 0});
      cache_.replan(plan_, batch);
      cache_.mesh().wait({}, "bench: forks");
    });
    for (const BatchEntry& entry : batch) cache_.erase(entry.sequence);
    return seconds;
  }

 private:
  std::int64_t tokens_to_copy() const {
    std::int64_t tokens = 0;
    for (const SequenceId sequence : sequences_)
      tokens += cache_.length(sequence) % cache_.options().page_size;
    return tokens;
  }

  KvCache cache_;
  StepPlan plan_;
  std::int64_t tokens_;
  std::vector<SequenceId> sequences_;
};

}  // namespace

Row measure_forks(const WorkloadShape& shape, Mesh& mesh, Machine& machine, const Options& options,
                  std::int64_t tokens) {
  Forks forks(shape, mesh, options.shape.state_bytes, tokens);
  const std::int64_t bytes = forks.copied_bytes();
  HostCalls calls{.once = [&] { return forks.once(); },
                  .amount = static_cast<double>(bytes) * mesh.head_parallel()};
  if (bytes > 0 && mesh.kv_parallel() == 1)
    calls.plain = machine.copy_within(static_cast<std::size_t>(bytes));
  return measure_calls(calls, mesh, machine, case_of(shape, Op::kFork, tokens), shape.layers,
                       options.repeats);
}

}  // namespace kvmesh::bench
