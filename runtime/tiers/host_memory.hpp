// Host memory that a device copies from and to.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Owns host memory that begins at a page boundary. For a GPU it is pinned: a GPU copies other
/// memory through a buffer of the driver. Moves, does not copy.
class HostMemory {
 public:
  HostMemory() = default;
  /// @throws Error or std::bad_alloc if the system has less.
  HostMemory(Device device, std::size_t size_bytes);

  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<void, std::function<void(void*)>> data_;
  std::size_t size_bytes_ = 0;
};

}  // namespace kvmesh
