// Host memory that a device copies from and to.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// At a page boundary; pinned for a GPU, which copies other memory by a detour. Moves, does not
/// copy.
class HostMemory {
 public:
  HostMemory() = default;
  /// @throws Error or std::bad_alloc if there is not so much.
  HostMemory(Device device, std::size_t size_bytes);

  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<void, std::function<void(void*)>> data_;
  std::size_t size_bytes_ = 0;
};

}  // namespace kvmesh
