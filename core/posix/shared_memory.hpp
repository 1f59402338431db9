// Memory of a device that other ranks of the node can map: one block, one handle.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/posix/memory.hpp"
#include "core/posix/process_identity.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Whom a block is for. Memory for other processes costs more: on the CPU most systems back it with
/// small pages, on a GPU it comes in units of 2 MiB.
enum class Sharing : std::uint8_t { kProcess, kNode };

/// What a rank needs to map another's block. Trivially copyable: send it.
struct MemoryHandle {
  ProcessIdentity owner;
  Device device;
  std::uint64_t size_bytes = 0;
  /// For threads of the owner's process; read only while the owner waits.
  const std::shared_ptr<void>* in_process = nullptr;
  posix_memory::Ticket posix;  ///< On the CPU: for other processes.
  bool has_ipc = false;        ///< On a GPU: for other processes.
  std::array<std::byte, 64> ipc{};
};

/// Owns the block, not initialised. It lives until its owner and all that mapped it have let go of
/// it, also if the owner's process is killed. On a GPU the owner must outlive others' *use* of it:
/// CUDA does not promise what they read once it is freed (a killed process frees nothing). Stays
/// where it is, as handles point to it.
class SharedMemory {
 public:
  /// `size_bytes` is rounded up to what the device gives (`granule`). @throws Error or
  /// std::bad_alloc if there is not so much. Where the system refuses to share, nobody can map it.
  SharedMemory(Device device, std::size_t size_bytes, Sharing sharing);
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void* data() const { return data_.get(); }
  std::size_t size_bytes() const { return handle_.size_bytes; }
  MemoryHandle handle() const;

  /// Blocks are whole multiples of this.
  static std::size_t granule(Device device);

 private:
  void allocate_on_host(Sharing sharing);
  void allocate_on_gpu(Sharing sharing);

  MemoryHandle handle_;
  std::shared_ptr<void> data_;
};

/// The block's address for this rank, which uses `device`; null where it cannot be mapped: another
/// machine, another kind of device, GPUs without access to one another, or the system refuses.
std::shared_ptr<void> map_memory(const MemoryHandle& handle, Device device);

}  // namespace kvmesh
