// Waiting for something that can only be asked about.
#pragma once

#include <sched.h>

#include <chrono>
#include <thread>

namespace kvmesh {

/// Pauses a little between two questions, by how long the caller has waited. Most answers come
/// after some 10 us, so it yields at first; what takes longer waits for a peer and leaves the core.
inline void back_off(std::chrono::steady_clock::duration waited) {
  if (waited < std::chrono::milliseconds(1)) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

/// Asks until the answer is yes, or `deadline` is over: then false.
template <class IsDone>
bool wait_until_done(const IsDone& is_done, std::chrono::milliseconds deadline) {
  const auto start = std::chrono::steady_clock::now();
  while (!is_done()) {
    const auto waited = std::chrono::steady_clock::now() - start;
    if (std::chrono::floor<std::chrono::milliseconds>(waited) >= deadline) return false;
    back_off(waited);
  }
  return true;
}

}  // namespace kvmesh
