// Copies whole pages between this rank's pools and host memory.
#pragma once

#include <cstddef>
#include <memory>

#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// A page's image: its planes, layer after layer, plane after plane, each [heads, page_size,
/// elements], as in the pools, where these are contiguous too. So a page is layers x planes copies,
/// each of one head's page times the heads: 32 KiB with 8 heads, 16 tokens, dim 128, 16 bits.
///
/// On a GPU each packer has a stream of its own; a call returns when its copies are done.
class PagePacker {
 public:
  /// REQUIRES: `pools`, with one layer group, outlives the packer.
  explicit PagePacker(const PoolStorage& pools);
  ~PagePacker();

  std::size_t page_bytes() const { return page_bytes_; }
  void pack(std::int32_t page, std::byte* image) const { copy(page, image, true); }
  void unpack(const std::byte* image, std::int32_t page) const {
    copy(page, const_cast<std::byte*>(image), false);
  }

 private:
  void copy(std::int32_t page, std::byte* image, bool packs) const;

  const PoolStorage& pools_;
  std::size_t page_bytes_ = 0;
  std::unique_ptr<void, void (*)(void*)> stream_;  // null on the CPU
};

}  // namespace kvmesh
