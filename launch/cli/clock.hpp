// The time that a command has taken.
#pragma once

#include <chrono>

namespace kvmesh::launch {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace kvmesh::launch
