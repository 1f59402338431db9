// Pinned host memory through which the records of sequences come to a GPU and leave it.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "core/move_stream.hpp"
#include "runtime/tiers/host_memory.hpp"

namespace kvmesh {

/// Two buffers, and the stream of the moves between them and the pools: one is moved while the host
/// works on the other. A cache keeps them, because pinned memory takes the system long to provide.
struct Staging {
  /// The size of a buffer, unless a record has more. One launch and one copy move as many
  /// (PageCopier).
  std::size_t batch_bytes = std::size_t{16} << 20;
  std::array<HostMemory, 2> buffers{};   // empty until they are used
  std::unique_ptr<MoveStream> stream{};  // null on the CPU; ends first: its moves use the buffers
};

}  // namespace kvmesh
