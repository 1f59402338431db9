// Waits of the host for a GPU, none without end: what it waits for may itself wait for a peer that
// has died.
#pragma once

#include <chrono>
#include <string_view>

#include "kvmesh/error.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// Who waits, how long at most, and in which operation.
struct DeviceWait {
  Rank waiter;
  std::chrono::milliseconds deadline;
  std::string_view operation;
};

/// Waits for all that was given to `stream` of the current GPU. @throws Timeout, Error if the GPU
/// failed.
void wait_for_stream(Stream stream, const DeviceWait& wait);

/// Waits for all that was given to the GPU, on any stream. Starts a thread, since CUDA cannot be
/// asked: for rare occasions. @throws as wait_for_stream.
void wait_for_device(int device, const DeviceWait& wait);

}  // namespace kvmesh
