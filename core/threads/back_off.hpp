// Waits for conditions that can only be polled.
#pragma once

#include <sched.h>

#include <chrono>
#include <thread>

namespace kvmesh {

/// Pauses between two polls, depending on how long the caller has waited. Most conditions become
/// true after some 10 us, so it yields at first. A longer wait is for a peer: then it sleeps and
/// frees the core.
inline void back_off(std::chrono::steady_clock::duration waited) {
  if (waited < std::chrono::milliseconds(1)) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

/// Polls until `is_done()` returns true. Returns false if `deadline` is over first.
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
