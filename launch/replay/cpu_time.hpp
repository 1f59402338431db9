// The CPU time of calls.
#pragma once

#include <ctime>

namespace kvmesh::replay {

/// Returns the CPU time of this thread: other work on the machine does not count.
inline double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Calls `operation` and adds its time to `seconds`.
template <class Operation>
auto timed(double& seconds, const Operation& operation) {
  struct Timer {
    ~Timer() { seconds += cpu_seconds() - start; }
    double& seconds;
    double start = cpu_seconds();
  };
  const Timer timer{seconds};
  return operation();
}

}  // namespace kvmesh::replay
