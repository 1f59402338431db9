// Pinned host memory through which the records of sequences come to a GPU and leave it.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "core/cuda/device_wait.hpp"
#include "core/move_stream.hpp"
#include "kvmesh/communicator.hpp"
#include "runtime/tiers/host_memory.hpp"

namespace kvmesh {

/// Two buffers, and the stream of the moves between them and the pools: one is moved while the host
/// works on the other. A cache keeps them, because pinned memory takes the system long to provide.
///
/// A move goes on when an import or export stops waiting for it, and may write pages that the
/// import has given back. All ranks give them back at once, so that their allocators stay the same;
/// on the rank with the late move, the next use of any page comes after it (`wait`, `before`), as
/// after late copies of pages (Backend::after_late_moves).
struct Staging {
  /// The size of a buffer, unless a record is larger. One launch and one copy move this many bytes
  /// (PageCopier).
  std::size_t batch_bytes = std::size_t{16} << 20;
  std::array<HostMemory, 2> buffers{};   // empty until they are used
  std::unique_ptr<MoveStream> stream{};  // null on the CPU; ends first: its moves use the buffers

  /// Blocks until all moves are done. @throws Timeout, Error if the device has failed.
  void wait(const Communicator& world) {
    if (!stream) return;
    wait_until([this] { return stream->is_done(); },
               {world.rank(), world.deadline(), "move records"});
  }
  /// The work to come on `on` runs after the moves so far.
  void before(Stream on) {
    if (stream) stream->before(on);
  }
};

}  // namespace kvmesh
