// Waits of the host for a GPU, all with a deadline: the GPU's work may itself wait for a peer that
// has died.
#pragma once

#include <chrono>
#include <functional>
#include <string_view>

#include "kvmesh/error.hpp"

namespace kvmesh {

/// The waiting rank, the deadline, and the operation to name in errors.
struct DeviceWait {
  Rank waiter;
  std::chrono::milliseconds deadline;
  std::string_view operation;
};

/// Blocks until `is_done` returns true. @throws Timeout, and any exception of `is_done`.
void wait_until(const std::function<bool()>& is_done, const DeviceWait& wait);

/// Returns a function that returns whether the GPU has done all its work so far, on any stream. Use
/// it rarely: it starts a thread that waits, because CUDA has no query for this. The function
/// throws Error if the GPU failed.
std::function<bool()> whole_device_done(int device);

}  // namespace kvmesh
