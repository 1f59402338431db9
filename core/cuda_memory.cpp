#include "core/cuda_memory.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>

#include "core/cuda_check.hpp"

namespace kvmesh::cuda_memory {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {  // no driver is no device
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return count;
}

std::array<char, 16> identity(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for a device's identity");
  std::array<char, 16> bytes;
  std::copy(std::begin(properties.uuid.bytes), std::end(properties.uuid.bytes), bytes.begin());
  return bytes;
}

void use_device(int index) { check(cudaSetDevice(index), "choosing the device"); }

void synchronize(Stream stream) {
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)), "waiting for a stream");
}

void copy_bytes(void* to, const void* from, std::size_t size_bytes) {
  check(cudaMemcpy(to, from, size_bytes, cudaMemcpyDefault), "copying memory");
}

Owner allocate(int device, std::size_t size_bytes, HostAccess access) {
  use_device(device);
  void* data = nullptr;
  // A freed block cannot tell of an error: the process may already have left CUDA.
  if (access == HostAccess::kYes) {
    check(cudaMallocHost(&data, size_bytes), "allocating host memory for a device");
    return {data, [](void* p) { static_cast<void>(cudaFreeHost(p)); }};
  }
  check(cudaMalloc(&data, size_bytes), "allocating device memory");
  return {data, [](void* p) { static_cast<void>(cudaFree(p)); }};
}

}  // namespace kvmesh::cuda_memory
