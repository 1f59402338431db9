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

/// What the calls do together, all ranks and layers.
struct HostCalls {
  std::function<double()> once;  ///< returns the seconds of one, on this rank
  double amount = 0;             ///< bytes of one
  std::optional<Ceiling> plain{};
};

/// Measures `turns` of them after two to warm up. Collective over the mesh.
Row measure_calls(const HostCalls& calls, Mesh& mesh, Machine& machine, const Case& what,
                  int layers, int turns);

}  // namespace kvmesh::bench
