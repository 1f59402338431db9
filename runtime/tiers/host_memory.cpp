#include "runtime/tiers/host_memory.hpp"

#include "core/aligned_buffer.hpp"
#include "core/cuda/memory.hpp"

namespace kvmesh {

HostMemory::HostMemory(Device device, std::size_t size_bytes) : size_bytes_(size_bytes) {
  if (device.kind == DeviceKind::kCuda) {
    data_ = cuda_memory::allocate_pinned(device.index, size_bytes);
    return;
  }
  auto buffer = std::make_shared<AlignedBuffer>(size_bytes);
  data_ = {buffer->data(), [buffer](void*) {}};
}

}  // namespace kvmesh
