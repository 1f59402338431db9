// Memory that a rank owns: aligned, movable, not initialised.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace kvmesh {

/// `size_bytes` bytes at a page boundary. The system gives the memory when it is first written, so
/// a large pool costs only what is used of it.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size_bytes) : size_bytes_(size_bytes) {
    const std::size_t rounded = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (rounded == 0) return;
    data_.reset(std::aligned_alloc(kAlignment, rounded));
    if (!data_) throw std::bad_alloc();
  }

  void* data() const { return data_.get(); }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  static constexpr std::size_t kAlignment = 4096;
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t size_bytes_ = 0;
};

}  // namespace kvmesh
