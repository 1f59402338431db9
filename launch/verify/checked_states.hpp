// States of layers that have no keys, and what they must be.
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
  CheckedStates(KvCache& cache, Findings& findings) : cache_(cache), findings_(findings) {}

  /// Call it after the batch was planned.
  void step(std::span<const BatchEntry> batch, Random& random);
  /// After a fork, and before its erase or truncate.
  void fork(SequenceId sequence, SequenceId forked);
  void erase(SequenceId sequence);
  void truncate(SequenceId sequence, std::int64_t length);

 private:
  using State = std::vector<float>;
  void check(int layer, SequenceId sequence);
  void write(int layer, SequenceId sequence, Random& random);

  KvCache& cache_;
  Findings& findings_;
  std::map<std::pair<SequenceId, int>, State> states_;
};

}  // namespace kvmesh::verify
