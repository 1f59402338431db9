// Host memory that other processes of the machine can map.
//
// A file in memory that never had a name in any folder (memfd): it lives while a process has it
// open or mapped, so nothing stays behind when the last one dies, however it dies, and what a dead
// process wrote is still there for those that map it. Another process opens it through the owner's
// /proc/PID/fd. Unlike files in /dev/shm it is not bound by the size of that file system, which
// containers keep at 64 MiB.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace kvmesh::posix_memory {

/// Where to find a block. Trivially copyable.
struct Ticket {
  std::int64_t pid = 0;
  std::int32_t fd = -1;
  /// Drawn at random. A process number may mean another process to whoever looks it up (another
  /// container, or the number was given again): the label tells.
  std::array<char, 40> label{};
};

struct Block {
  std::shared_ptr<void> data;
  Ticket ticket;
};

/// Empty if the system gives no such memory. As with malloc, the memory itself comes with the first
/// write.
std::optional<Block> allocate(std::size_t size_bytes);

/// Null if this process cannot reach it. Stays valid when the owner lets go of it or dies.
std::shared_ptr<void> map(const Ticket& ticket, std::size_t size_bytes);

}  // namespace kvmesh::posix_memory
