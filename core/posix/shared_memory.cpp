#include "core/posix/shared_memory.hpp"

#include <sys/mman.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <new>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/checked.hpp"
#include "core/cuda/memory.hpp"

namespace kvmesh {
namespace {

// The system grants shared memory without checking that it is free, and kills the process that
// writes to it when it is not.
void refuse_more_than_there_is(std::size_t size_bytes) {
  struct sysinfo machine {};
  if (sysinfo(&machine) != 0) return;
  const std::uint64_t units = std::uint64_t{machine.totalram} + machine.totalswap;
  if (size_bytes > units * machine.mem_unit) throw std::bad_alloc();
}

/// The range is freed when the device has done its work, as CUDA does with memory of its own.
std::shared_ptr<cuda_memory::AddressRange> range_of(Device device, std::size_t size_bytes) {
  const auto destroy = [device](cuda_memory::AddressRange* range) {
    try {
      cuda_memory::use_device(device.index);
      cuda_memory::synchronize_device();
    } catch (const Error&) {
      // The process may already have shut CUDA down.
    }
    delete range;
  };
  return {new cuda_memory::AddressRange(device.index, size_bytes), destroy};
}

}  // namespace

SharedMemory::SharedMemory(Device device, std::size_t size_bytes, Sharing sharing)
    : sharing_(sharing) {
  const std::size_t unit = granule(device);
  handle_.owner = this_process();
  handle_.device = device;
  handle_.size_bytes = rounded_up(size_bytes, unit);
  if (size_bytes == 0) return;
  device.kind == DeviceKind::kCuda ? allocate_on_gpu(sharing) : allocate_on_host(sharing);
}

SharedMemory::SharedMemory(Device device, std::size_t size_bytes, Sharing sharing,
                           std::span<const ByteRange> used)
    : SharedMemory(device, device.kind == DeviceKind::kCuda ? 0 : size_bytes, sharing) {
  if (device.kind != DeviceKind::kCuda) return;
  handle_.size_bytes = rounded_up(size_bytes, cuda_memory::piece_granule(device.index));
  pieces_ = range_of(device, handle_.size_bytes);
  data_ = {pieces_, pieces_->data()};
  keep_pieces(used);
}

void SharedMemory::allocate_on_host(Sharing sharing) {
  refuse_more_than_there_is(size_bytes());
  if (sharing == Sharing::kNode) {
    if (auto block = posix_memory::allocate(size_bytes())) {
      data_ = std::move(block->data);
      handle_.posix = block->ticket;
      return;
    }
  }
  const auto buffer = std::make_shared<AlignedBuffer>(size_bytes());
  data_ = {buffer, buffer->data()};
}

void SharedMemory::allocate_on_gpu(Sharing sharing) {
  data_ = cuda_memory::allocate(handle_.device.index, size_bytes());
  if (sharing == Sharing::kNode) handle_.has_ipc = cuda_memory::export_to(data_.get(), handle_.ipc);
}

void SharedMemory::keep(std::span<const ByteRange> used) {
  if (pieces_) return keep_pieces(used);
  if (handle_.device.kind == DeviceKind::kCuda) return;
  std::vector<ByteRange> sorted(used.begin(), used.end());
  std::ranges::sort(sorted);
  std::size_t kept = 0;
  for (const ByteRange& range : sorted) {
    discard(kept, range.first);
    kept = std::max(kept, range.last);
  }
  discard(kept, size_bytes());
}

void SharedMemory::keep_pieces(std::span<const ByteRange> used) {
  const PieceChanges changes =
      piece_changes(pieces_->pieces(), used, cuda_memory::piece_granule(handle_.device.index));
  for (std::size_t i = 0; i < changes.add.size(); ++i) {
    try {
      pieces_->add(changes.add[i]);
    } catch (...) {
      while (i-- > 0) pieces_->remove(changes.add[i]);
      throw;
    }
  }
  for (const ByteRange& piece : changes.remove) pieces_->remove(piece);
}

std::unique_ptr<DescriptorServer> SharedMemory::serve() const {
  if (!pieces_ || sharing_ == Sharing::kProcess) return nullptr;
  return std::make_unique<DescriptorServer>(
      pieces_->pieces(), [pieces = pieces_, device = handle_.device](const ByteRange& piece) {
        cuda_memory::use_device(device.index);
        return pieces->export_piece(piece);
      });
}

// A hole in shared memory is there for all that map it; memory of this process alone has no file.
void SharedMemory::discard(std::size_t first, std::size_t last) {
  const std::size_t unit = granule(handle_.device);
  first = rounded_up(first, unit);
  last = last / unit * unit;
  if (first >= last) return;
  madvise(static_cast<std::byte*>(data_.get()) + first, last - first,
          handle_.posix.fd >= 0 ? MADV_REMOVE : MADV_DONTNEED);
}

MemoryHandle SharedMemory::handle() const {
  MemoryHandle handle = handle_;
  handle.in_process = &data_;
  return handle;
}

// CUDA cuts small blocks from larger ones, and sharing a block shares all of the larger block. It
// does not cut whole units of 2 MiB.
std::size_t SharedMemory::granule(Device device) {
  return device.kind == DeviceKind::kCuda ? std::size_t{2} << 20 : std::size_t{4} << 10;
}

namespace {

std::shared_ptr<void> map_pieces(const MemoryHandle& handle, Device device) {
  if (!cuda_memory::has_pieces(device.index)) return nullptr;
  const auto range = range_of(device, handle.size_bytes);
  const bool has_all = take_descriptors(handle.pieces, [&](const ByteRange& piece, int descriptor) {
    return piece.last <= handle.size_bytes && range->import_piece(piece, descriptor);
  });
  return has_all ? std::shared_ptr<void>(range, range->data()) : nullptr;
}

}  // namespace

std::shared_ptr<void> map_memory(const MemoryHandle& handle, Device device) {
  const bool on_gpu = device.kind == DeviceKind::kCuda;
  const ProcessIdentity me = this_process();
  if (handle.device.kind != device.kind || !me.same_host(handle.owner)) return nullptr;
  if (me.same_process(handle.owner)) {
    if (on_gpu && !cuda_memory::enable_peer_access(device.index, handle.device.index)) {
      return nullptr;
    }
    return *handle.in_process;
  }
  if (!on_gpu) return posix_memory::map(handle.posix, handle.size_bytes);
  if (handle.pieces.front() != 0) return map_pieces(handle, device);
  return handle.has_ipc ? cuda_memory::import_from(handle.ipc, device.index) : nullptr;
}

}  // namespace kvmesh
