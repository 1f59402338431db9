// A rank's pages on its device: one block of memory for all layers.
#pragma once

#include <memory>

#include "core/posix/shared_memory.hpp"
#include "kvmesh/page_format.hpp"

namespace kvmesh {

/// One rank's share of a cache.
struct LocalShape {
  AttentionShape attention;
  KvFormat format;
  std::int64_t pages = 0;
};

/// Offsets of the planes in the block: the planes of layer 0, those of layer 1, ..., each [pages,
/// heads, page_size, elements] and aligned. All ranks with the same options have the same offsets,
/// so one pointer is enough to read another rank's pools.
class PoolLayout {
 public:
  /// @throws InvalidArgument if the number of bytes does not fit in 63 bits.
  PoolLayout(const PageFormat& format, std::int64_t pages, int layers, Device device);

  PagePlanes layer(void* block, int layer) const;
  int layers() const { return layers_; }
  std::int64_t size_bytes() const { return size_bytes_; }
  const PageFormat& format() const { return format_; }
  Device device() const { return device_; }

 private:
  PageFormat format_;
  std::int64_t pages_;
  int layers_;
  Device device_;
  PlaneList<std::int64_t> offsets_;  // in a layer
  std::int64_t layer_bytes_ = 0;
  std::int64_t size_bytes_ = 0;
};

/// Returns the largest number of pages whose block takes at most `bytes` on the device; 0 if not
/// even one page fits.
std::int64_t pages_within(std::int64_t bytes, const PageFormat& format, int layers, Device device);

/// Owns the block. Movable.
class PoolStorage {
 public:
  /// @throws Error or std::bad_alloc if the device has not enough memory.
  PoolStorage(const PageFormat& format, std::int64_t pages, int layers, Device device,
              Sharing sharing = Sharing::kProcess);

  PagePlanes layer(int layer) const { return layout_.layer(memory_->data(), layer); }
  int layers() const { return layout_.layers(); }
  /// Bytes of device memory held.
  std::int64_t size_bytes() const { return static_cast<std::int64_t>(memory_->size_bytes()); }
  const PoolLayout& layout() const { return layout_; }
  MemoryHandle handle() const { return memory_->handle(); }

 private:
  PoolLayout layout_;
  std::unique_ptr<SharedMemory> memory_;
};

}  // namespace kvmesh
