// Waits of the host for a GPU, none without end: what it waits for may itself wait for a peer that
// has died.
#pragma once

#include <chrono>
#include <functional>
#include <string_view>

#include "kvmesh/error.hpp"

namespace kvmesh {

/// Who waits, how long at most, and in which operation.
struct DeviceWait {
  Rank waiter;
  std::chrono::milliseconds deadline;
  std::string_view operation;
};

/// Waits until `is_done` says yes. @throws Timeout; what `is_done` throws.
void wait_until(const std::function<bool()>& is_done, const DeviceWait& wait);

/// Says whether the GPU has done all that it was given so far, on any stream. Starts a thread,
/// since CUDA cannot be asked: for rare occasions. Throws Error if the GPU failed.
std::function<bool()> whole_device_done(int device);

}  // namespace kvmesh
