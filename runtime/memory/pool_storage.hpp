// A rank's pages on its device: one block of memory for all layers.
#pragma once

#include <memory>

#include "core/posix/shared_memory.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// The sizes of one rank's share of a layer.
struct LocalShape {
  AttentionShape attention;
  std::int64_t pages = 0;
  Dtype dtype = Dtype::kFloat32;

  /// Bytes of the keys (or values), with `dim` elements per token and head.
  /// @throws InvalidArgument if the number does not fit in 63 bits.
  std::int64_t half_bytes(int dim) const;
};

/// Offsets of the pools in the block: K of layer 0, V of layer 0, K of layer 1, ..., each [pages,
/// kv_heads, page_size, dim] and aligned. All ranks with the same options have the same offsets, so
/// one pointer is enough to read another rank's pools.
class PoolLayout {
 public:
  /// @throws InvalidArgument if the number of bytes does not fit in 63 bits.
  PoolLayout(const LocalShape& shape, int layers, Device device);

  KvPool layer(void* block, int layer) const;
  int layers() const { return layers_; }
  std::int64_t size_bytes() const { return size_bytes_; }

 private:
  LocalShape shape_;
  int layers_;
  Device device_;
  std::int64_t k_bytes_;
  std::int64_t v_bytes_;
  std::int64_t size_bytes_;
};

/// Returns the largest number of pages whose block takes at most `bytes` on the device; 0 if not
/// even one page fits. Ignores `shape.pages`.
std::int64_t pages_within(std::int64_t bytes, LocalShape shape, int layers, Device device);

/// Owns the block. Movable.
class PoolStorage {
 public:
  /// @throws Error or std::bad_alloc if the device has not enough memory.
  PoolStorage(const LocalShape& shape, int layers, Device device,
              Sharing sharing = Sharing::kProcess);

  KvPool layer(int layer) const { return layout_.layer(memory_->data(), layer); }
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
