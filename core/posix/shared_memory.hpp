// Memory of a device that other ranks of the node can map: one block, one handle.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/cuda/address_range.hpp"
#include "core/pieces.hpp"
#include "core/posix/descriptors.hpp"
#include "core/posix/memory.hpp"
#include "core/posix/process_identity.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// The processes that can use a block. Memory for other processes costs more: on the CPU most
/// systems back it with small pages, on a GPU it comes in units of 2 MiB.
enum class Sharing : std::uint8_t { kProcess, kNode };

/// The data that a rank needs to map another rank's block. Trivially copyable, to be sent.
struct MemoryHandle {
  ProcessIdentity owner;
  Device device;
  std::uint64_t size_bytes = 0;
  /// For threads of the owner's process; read only while the owner waits.
  const std::shared_ptr<void>* in_process = nullptr;
  posix_memory::Ticket posix;  ///< On the CPU: for other processes.
  bool has_ipc = false;        ///< On a GPU: for other processes.
  std::array<std::byte, 64> ipc{};
  DescriptorPlace pieces{};  ///< On a GPU, for memory in pieces: for other processes.
};

/// Owns an uninitialised block. The block exists until its owner and all ranks that mapped it have
/// released it, also if the owner's process is killed. On a GPU the owner must free it only after
/// all other ranks have stopped reading: CUDA leaves reads of freed memory undefined. (A killed
/// process frees nothing.) Neither copied nor moved, since handles point to it.
class SharedMemory {
 public:
  /// Allocates `size_bytes`, rounded up to a multiple of `granule`. If the system refuses to share
  /// the memory, other ranks cannot map the block.
  /// @throws Error or std::bad_alloc if there is not enough memory.
  SharedMemory(Device device, std::size_t size_bytes, Sharing sharing);
  /// Reserves addresses for `size_bytes`, and has memory for the bytes `used`, until `keep` changes
  /// them. On a GPU the memory comes in pieces. REQUIRES: there, cuda_memory::has_pieces.
  /// @throws as above.
  SharedMemory(Device device, std::size_t size_bytes, Sharing sharing,
               std::span<const ByteRange> used);
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void* data() const { return data_.get(); }
  std::size_t size_bytes() const { return handle_.size_bytes; }
  /// Bytes of memory, if it is in pieces; else size_bytes().
  std::size_t held_bytes() const { return pieces_ ? pieces_->mapped_bytes() : size_bytes(); }
  bool in_pieces() const { return pieces_ != nullptr; }
  /// The handle of memory in pieces is valid while a `serve()` exists, with `pieces` set to its
  /// place.
  MemoryHandle handle() const;
  /// Gives its pieces to other processes. Null if it has none, or they are for this one alone.
  std::unique_ptr<DescriptorServer> serve() const;

  /// Has memory for the bytes `used`, and returns the rest to the system, as far as that are whole
  /// pages of memory (on a GPU, whole pieces), whose content is unspecified then. On a GPU without
  /// pieces it does nothing. REQUIRES: the device does not work with the rest.
  /// @throws Error, with nothing changed, if there is not enough memory.
  void keep(std::span<const ByteRange> used);

  /// The unit of block sizes on `device`.
  static std::size_t granule(Device device);

 private:
  void allocate_on_host(Sharing sharing);
  void allocate_on_gpu(Sharing sharing);
  void discard(std::size_t first, std::size_t last);
  void keep_pieces(std::span<const ByteRange> used);

  Sharing sharing_;
  MemoryHandle handle_;
  std::shared_ptr<cuda_memory::AddressRange> pieces_;  // null: data_ is one block
  std::shared_ptr<void> data_;
};

/// Maps a block for this rank, which uses `device`. Returns null if it cannot be mapped: the block
/// is on another machine or another kind of device, the GPUs cannot access one another, or the
/// system refuses.
std::shared_ptr<void> map_memory(const MemoryHandle& handle, Device device);

}  // namespace kvmesh
