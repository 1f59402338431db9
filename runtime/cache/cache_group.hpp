// A rank's part of one layer group.
#pragma once

#include <deque>
#include <memory>
#include <utility>

#include "runtime/memory/layer_groups.hpp"
#include "runtime/step/backend.hpp"
#include "runtime/step/local_pages.hpp"
#include "runtime/tiers/host_move_stream.hpp"

namespace kvmesh {

/// The group's page tables and what follows them. The allocators of a cache's groups have one id
/// space and get the same operations, so a sequence has one id in all of them. The pages themselves
/// are in the cache's pools. Never moved.
struct CacheGroup {
  /// REQUIRES: the mesh and the memory of `scales` outlive it.
  CacheGroup(Mesh& mesh, CacheOptions of_group, const AllocatorOptions& pages,
             const TensorView& scales)
      : options(std::move(of_group)),
        shape(local_shape(mesh, options)),
        head_scales(scales),
        allocator(pages),
        backend(make_backend(mesh, allocator)),
        local_pages(mesh.page_rank(), allocator) {}
  CacheGroup(const CacheGroup&) = delete;
  CacheGroup& operator=(const CacheGroup&) = delete;

  /// Whether it holds states instead of keys and values.
  bool has_states() const { return options.state_bytes > 0; }
  /// Returns one layer's planes, this rank's or another's, as append and attention see them.
  /// REQUIRES: the group has keys and values.
  KvPool pool(const PagePlanes& planes) const {
    return kv_pool(shape.attention, shape.format, planes, head_scales);
  }

  /// Returns a new stream for page moves beside the steps: of the GPU, or a thread.
  std::unique_ptr<MoveStream> make_move_stream() const {
    std::unique_ptr<MoveStream> stream = backend->make_move_stream();
    return stream ? std::move(stream) : std::make_unique<HostMoveStream>();
  }

  CacheOptions options;  // those of a cache that has the group's layers alone
  LocalShape shape;
  TensorView head_scales;  // as kv_pool takes them; empty if there are none
  PageAllocator allocator;
  std::unique_ptr<Backend> backend;
  LocalPages local_pages;
};

/// The tokens of the longest run that all groups have. @throws as PageAllocator::cached_tokens.
std::int64_t cached_tokens(std::deque<CacheGroup>& groups, const PrefixKey& key);
/// Pins that run in all groups.
PrefixMatch match_prefix(std::deque<CacheGroup>& groups, const PrefixKey& key);

}  // namespace kvmesh
