#include "core/cuda/memory.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/cuda/check.hpp"

namespace kvmesh::cuda_memory {
namespace {

// For calls that may fail normally: clears the error that the runtime also keeps for the next call
// of cudaGetLastError.
bool succeeded(cudaError_t status) {
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
  return status == cudaSuccess;
}

}  // namespace

// Errors are ignored: the process may already have shut CUDA down.
void free_memory(void* data) { static_cast<void>(cudaFree(data)); }
void free_pinned_memory(void* data) { static_cast<void>(cudaFreeHost(data)); }
void destroy_stream(void* stream) {
  static_cast<void>(cudaStreamDestroy(static_cast<cudaStream_t>(stream)));
}

int device_count() {
  int count = 0;
  return succeeded(cudaGetDeviceCount(&count)) ? count : 0;  // without a driver: no device
}

std::array<char, 16> identity(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for a device's identity");
  std::array<char, 16> bytes;
  std::copy(std::begin(properties.uuid.bytes), std::end(properties.uuid.bytes), bytes.begin());
  return bytes;
}

int compute_capability(int device) {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "asking for a device's compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
        "asking for a device's compute capability");
  return 10 * major + minor;
}

std::string model(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for a device's model");
  return properties.name;
}

void use_device(int index) {
  const cudaError_t status = cudaSetDevice(index);
  const bool is_there = status != cudaErrorInvalidDevice && status != cudaErrorNoDevice &&
                        status != cudaErrorInsufficientDriver;
  if (!is_there) {
    throw Unsupported(
        fmt::format("CUDA device {} of the {} that this process can use", index, device_count()));
  }
  check(status, "choosing the device");
}

void synchronize_device() { check(cudaDeviceSynchronize(), "waiting for a device"); }

bool is_done(Stream stream, std::string_view operation) {
  const cudaError_t status = cudaStreamQuery(static_cast<cudaStream_t>(stream.handle));
  if (status == cudaErrorNotReady) return false;
  check(status, operation);
  return true;
}

void copy_bytes(void* to, const void* from, std::size_t size_bytes) {
  check(cudaMemcpy(to, from, size_bytes, cudaMemcpyDefault), "copying memory");
  // cudaMemcpy returns early from a copy between two blocks of a device, and from a small copy from
  // the host.
  check(cudaStreamSynchronize(nullptr), "waiting for a copy");
}

void copy_bytes_on(Stream stream, void* to, const void* from, std::size_t size_bytes) {
  check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDefault,
                        static_cast<cudaStream_t>(stream.handle)),
        "copying memory on a stream");
}

std::optional<int> gpu_of(const void* data) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, data), "asking where memory is");
  if (attributes.type != cudaMemoryTypeDevice) return std::nullopt;
  return attributes.device;
}

bool is_captured(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t result =
      cudaStreamIsCapturing(static_cast<cudaStream_t>(stream.handle), &status);
  if (result == cudaErrorStreamCaptureImplicit) return !succeeded(result);
  check(result, "asking whether a stream is captured");
  return status != cudaStreamCaptureStatusNone;
}

void copy_rows(const Rows& rows, Stream stream) {
  check(cudaMemcpy2DAsync(rows.to, rows.to_pitch, rows.from, rows.from_pitch, rows.width,
                          rows.count, cudaMemcpyDefault, static_cast<cudaStream_t>(stream.handle)),
        "copying rows");
}

void fill(void* data, unsigned char value, std::size_t size_bytes, Stream stream) {
  check(cudaMemsetAsync(data, value, size_bytes, static_cast<cudaStream_t>(stream.handle)),
        "filling memory");
}

std::size_t free_bytes(int device) {
  use_device(device);
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for a device's free memory");
  return free;
}

OwnedMemory allocate(int device, std::size_t size_bytes) {
  use_device(device);
  void* data = nullptr;
  check(cudaMalloc(&data, size_bytes), "allocating device memory");
  return OwnedMemory(data);
}

OwnedPinnedMemory allocate_pinned(int device, std::size_t size_bytes) {
  use_device(device);
  void* data = nullptr;
  check(cudaHostAlloc(&data, size_bytes, cudaHostAllocDefault), "allocating pinned memory");
  return OwnedPinnedMemory(data);
}

OwnedStream make_stream(int device) {
  use_device(device);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return OwnedStream(stream);
}

bool export_to(void* data, std::array<std::byte, 64>& handle) {
  static_assert(sizeof(cudaIpcMemHandle_t) == sizeof handle);
  cudaIpcMemHandle_t ipc;
  if (!succeeded(cudaIpcGetMemHandle(&ipc, data))) return false;
  std::memcpy(handle.data(), &ipc, sizeof ipc);
  return true;
}

std::shared_ptr<void> import_from(const std::array<std::byte, 64>& handle, int device) {
  use_device(device);
  cudaIpcMemHandle_t ipc;
  std::memcpy(&ipc, handle.data(), sizeof ipc);
  void* data = nullptr;
  if (!succeeded(cudaIpcOpenMemHandle(&data, ipc, cudaIpcMemLazyEnablePeerAccess))) return nullptr;
  return {data, [](void* p) { static_cast<void>(cudaIpcCloseMemHandle(p)); }};
}

bool enable_peer_access(int device, int other) {
  if (device == other) return true;
  int possible = 0;
  if (!succeeded(cudaDeviceCanAccessPeer(&possible, device, other)) || possible == 0) return false;
  use_device(device);
  const cudaError_t status = cudaDeviceEnablePeerAccess(other, 0);
  return succeeded(status) || status == cudaErrorPeerAccessAlreadyEnabled;
}

}  // namespace kvmesh::cuda_memory
