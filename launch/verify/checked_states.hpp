// Checks the states of layers that have no keys.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "launch/verify/findings.hpp"
#include "launch/verify/random.hpp"

namespace kvmesh::verify {

/// Writes random states where a step appends, and compares each with what was written last,
/// whatever forks, moves and other sequences did in between. All ranks remember all states, and
/// draw them alike.
class CheckedStates {
 public:
  using State = std::vector<float>;
  using OfLayers = std::map<int, State>;

  CheckedStates(KvCache& cache, Findings& findings) : cache_(cache), findings_(findings) {}

  /// Checks the batch's states, and writes those of sequences that it appends to. Call it after the
  /// plan.
  void step(std::span<const BatchEntry> batch, Random& random);
  /// The same as the cache does. Call fork after the cache's, which makes the id.
  void fork(SequenceId sequence, SequenceId forked);
  void erase(SequenceId sequence);
  void truncate(SequenceId sequence, std::int64_t length);

  /// The sequence's states, to be those of a sequence that the cache makes of its prefix.
  OfLayers of(SequenceId sequence) const;
  void begin_with(SequenceId sequence, const OfLayers& states);

 private:
  void check(int layer, SequenceId sequence);
  void write(int layer, SequenceId sequence, Random& random);

  KvCache& cache_;
  Findings& findings_;
  std::map<std::pair<SequenceId, int>, State> states_;
};

}  // namespace kvmesh::verify
