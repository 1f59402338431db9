#include "kvmesh/device_memory.hpp"

#include <cstring>

#include "core/aligned_buffer.hpp"
#include "core/check.hpp"
#include "core/cuda/memory.hpp"

namespace kvmesh {

int cuda_device_count() { return cuda_memory::device_count(); }

void use_device(Device device) {
  require(device.kind <= DeviceKind::kCuda, "use_device: device kind {} is not valid",
          static_cast<int>(device.kind));
  if (device.kind == DeviceKind::kCuda) cuda_memory::use_device(device.index);
}

void copy_bytes(void* to, const void* from, std::size_t size_bytes) {
  static const bool has_device = cuda_device_count() > 0;  // cached: the query is expensive
  if (size_bytes == 0) return;
  require(to != nullptr && from != nullptr, "copy_bytes: no memory to copy {} bytes {}", size_bytes,
          to == nullptr ? "to" : "from");
  if (!has_device) {
    std::memcpy(to, from, size_bytes);
  } else {
    cuda_memory::copy_bytes(to, from, size_bytes);
  }
}

void copy_rows(const Rows& rows, Device device, Stream stream) {
  if (rows.width == 0 || rows.count == 0) return;
  if (device.kind == DeviceKind::kCuda) return cuda_memory::copy_rows(rows, stream);
  for (std::size_t i = 0; i < rows.count; ++i) {
    std::memcpy(static_cast<std::byte*>(rows.to) + i * rows.to_pitch,
                static_cast<const std::byte*>(rows.from) + i * rows.from_pitch, rows.width);
  }
}

DeviceMemory::DeviceMemory(Device device, std::size_t size_bytes) : size_bytes_(size_bytes) {
  require(device.kind <= DeviceKind::kCuda, "DeviceMemory: device kind {} is not valid",
          static_cast<int>(device.kind));
  if (size_bytes == 0) return;
  if (device.kind == DeviceKind::kCuda) {
    data_ = cuda_memory::allocate(device.index, size_bytes);
    return;
  }
  try {
    auto buffer = std::make_shared<AlignedBuffer>(size_bytes);
    data_ = {buffer->data(), [buffer](void*) {}};
  } catch (const std::bad_alloc&) {
    throw Error(fmt::format("no {} bytes of host memory", size_bytes));
  }
}

}  // namespace kvmesh
