// Host memory that other processes of the machine can map.
//
// A memfd: a file in memory without a name in any folder. It exists while a process has it open or
// mapped. So nothing stays behind when the last process ends, even if it is killed, and memory that
// a dead process wrote stays readable for the processes that map it. Another process opens it
// through the owner's /proc/PID/fd. Unlike files in /dev/shm it is not limited by the size of that
// file system, which containers keep at 64 MiB.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace kvmesh::posix_memory {

/// The place of a block. Trivially copyable.
struct Ticket {
  std::int64_t pid = 0;
  std::int32_t fd = -1;
  /// A random label that identifies the block. A process number alone may belong to another
  /// process: in another container, or because the number was reused.
  std::array<char, 40> label{};
};

struct Block {
  std::shared_ptr<void> data;
  Ticket ticket;
};

/// Allocates a block. The system provides the memory at the first write, as for malloc.
/// Returns empty if the system does not support such memory.
std::optional<Block> allocate(std::size_t size_bytes);

/// Maps a block of another process. The mapping stays valid when the owner frees the block or dies.
/// Returns null if this process cannot reach the block.
std::shared_ptr<void> map(const Ticket& ticket, std::size_t size_bytes);

}  // namespace kvmesh::posix_memory
