// What a rank's KvCache is made of.
#pragma once

#include <span>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "kvmesh/kv_cache.hpp"
#include "runtime/backend.hpp"

namespace kvmesh {

/// The sizes of one rank's share of a layer.
struct LocalShape {
  AttentionShape attention;
  std::int64_t pages = 0;
  Dtype dtype = Dtype::kFloat32;

  std::int64_t k_elements() const {
    return pages * attention.kv_heads * attention.page_size * attention.k_dim;
  }
  std::int64_t v_elements() const {
    return pages * attention.kv_heads * attention.page_size * attention.v_dim;
  }
};

/// One rank's pages on its device: K and V of each layer, [pages, kv_heads, page_size, dim].
class PoolStorage {
 public:
  PoolStorage(const LocalShape& shape, int layers, Device device);
  KvPool layer(int layer) const;
  int layers() const { return static_cast<int>(buffers_.size()) / 2; }
  std::int64_t size_bytes() const;

 private:
  LocalShape shape_;
  Device device_;
  std::vector<DeviceMemory> buffers_;  // K and V of layer 0, K and V of layer 1, ...
};

class KvCache::State {
 public:
  State(Mesh& mesh, const CacheOptions& options);

  Mesh* mesh;
  CacheOptions options;
  LocalShape shape;
  PageAllocator allocator;
  PoolStorage pools;
  std::unique_ptr<Backend> backend;
  DeviceMemory partial_o;    // [tokens, q_heads, v_dim] of the step in hand
  DeviceMemory partial_lse;  // [tokens, q_heads]
};

/// Does the copies that copy on write asks for, in every layer: here with copy_pages, and through
/// the kv communicator where a page moves to another rank (then collective, as all ranks pass the
/// same copies).
void copy_on_write(Backend& backend, const PoolStorage& pools, Communicator& kv,
                   std::span<const PageCopy> copies);

/// Collective. Throws DigestMismatch, naming the first operation in which the allocators parted.
void check_replicas(const PageAllocator& allocator, Communicator& world);

}  // namespace kvmesh
