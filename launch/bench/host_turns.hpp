// Calls that the host times, turn by turn beside a plain copy.
#pragma once

#include <chrono>
#include <functional>

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

template <class Call>
double seconds_of(const Call& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Calls that all ranks make together, each of all layers.
struct HostCalls {
  std::function<double()> once;  ///< makes one call; returns its seconds on this rank
  double amount = 0;             ///< bytes of one call
  std::optional<Ceiling> plain{};
};

/// Measures `turns` calls after two to warm up. Collective over the mesh.
Row measure_calls(const HostCalls& calls, Mesh& mesh, Machine& machine, const Case& what,
                  int layers, int turns);

}  // namespace kvmesh::bench
