// Host memory that a rank owns: aligned, movable, not initialised.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "core/checked.hpp"

namespace kvmesh {

/// `size_bytes` bytes at a page boundary. The system provides memory at the first write, so a large
/// pool uses only the memory that was written. Large buffers request huge pages: attention reads
/// pages of a cache in any order, and with 4 KiB pages each of them misses the TLB.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size_bytes) : size_bytes_(size_bytes) {
    if (size_bytes == 0) return;
    const std::size_t alignment = size_bytes < kHugePage ? kPage : kHugePage;
    const std::size_t rounded = rounded_up(size_bytes, alignment);
    data_.reset(std::aligned_alloc(alignment, rounded));
    if (!data_) throw std::bad_alloc();
    // Only advice: if the system declines it, small pages are used.
    if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
  }

  void* data() const { return data_.get(); }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  static constexpr std::size_t kPage = 4096;
  static constexpr std::size_t kHugePage = 2 << 20;
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t size_bytes_ = 0;
};

}  // namespace kvmesh
