// A rank's pages on its device: one block of memory for all layers.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/posix/shared_memory.hpp"
#include "kvmesh/page_format.hpp"

namespace kvmesh {

/// One rank's share of a cache.
struct LocalShape {
  AttentionShape attention;
  KvFormat format;
  std::int64_t pages = 0;
};

/// Layers whose pages have one format and one number.
struct PoolGroup {
  PageFormat format;
  std::int64_t pages = 0;
  std::vector<int> layers{};     ///< their numbers; each layer is in one group
  std::int64_t head_scales = 0;  ///< float32 numbers that lie beside the pages: see kv_pool
};

/// Offsets of the planes in the block: group after group, in each the planes of its first layer,
/// those of its second, ..., each [pages, heads, page_size, elements] and aligned, and its scales
/// per head. All ranks with the same options have the same offsets, so one pointer is enough to
/// read another rank's pools.
class PoolLayout {
 public:
  /// @throws InvalidArgument if the number of bytes does not fit in 63 bits.
  PoolLayout(std::vector<PoolGroup> groups, Device device);

  PagePlanes layer(void* block, int layer) const;
  /// [head_scales / heads, heads]; empty if the group has none.
  TensorView head_scales(void* block, std::size_t group) const;
  /// Returns the bytes of the block that hold the first pages[group] pages of each plane, and all
  /// scales per head.
  std::vector<ByteRange> bytes_of(std::span<const std::int64_t> pages) const;
  int layers() const { return static_cast<int>(layers_.size()); }
  std::int64_t size_bytes() const { return size_bytes_; }
  Device device() const { return device_; }
  const std::vector<PoolGroup>& groups() const { return groups_; }

 private:
  struct Layer {
    std::size_t group = 0;
    std::int64_t offset = 0;
  };

  std::vector<PoolGroup> groups_;
  Device device_;
  std::vector<PlaneList<std::int64_t>> offsets_;  // [group], in a layer
  std::vector<std::int64_t> scale_offsets_;       // [group]
  std::vector<Layer> layers_;
  std::int64_t size_bytes_ = 0;
};

/// Owns the block. Movable.
class PoolStorage {
 public:
  /// @throws Error or std::bad_alloc if the device has not enough memory.
  explicit PoolStorage(PoolLayout layout, Device device, Sharing sharing = Sharing::kProcess);
  /// Reserves addresses for all pages, and has memory for the first pages[group] of them until
  /// `resize`. REQUIRES: on a GPU, cuda_memory::has_pieces.
  PoolStorage(PoolLayout layout, Device device, Sharing sharing,
              std::span<const std::int64_t> pages);

  PagePlanes layer(int layer) const { return layout_.layer(memory_->data(), layer); }
  TensorView head_scales(std::size_t group) const {
    return layout_.head_scales(memory_->data(), group);
  }
  int layers() const { return layout_.layers(); }
  /// Bytes of device memory held.
  std::int64_t size_bytes() const { return static_cast<std::int64_t>(memory_->held_bytes()); }
  bool in_pieces() const { return memory_->in_pieces(); }
  const PoolLayout& layout() const { return layout_; }
  MemoryHandle handle() const { return memory_->handle(); }
  std::unique_ptr<DescriptorServer> serve() const { return memory_->serve(); }
  /// Has memory for the first pages[group] pages, and returns that of the others to the system, if
  /// the device can: their contents are unspecified then. REQUIRES: the device does not use them.
  /// @throws Error, with nothing changed, if there is not enough memory.
  void resize(std::span<const std::int64_t> pages) { memory_->keep(layout_.bytes_of(pages)); }

 private:
  PoolLayout layout_;
  std::unique_ptr<SharedMemory> memory_;
};

}  // namespace kvmesh
