// Helpers of the tests on a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cuda/check.hpp"
#include "kernels/cuda/common/kernel_store.hpp"

namespace kvmesh::test {

/// The kernels of device 0, for the whole program.
cuda::KernelStore& kernels();

/// Returns `count` elements of the device's memory. REQUIRES: the device is done with them.
template <class T>
std::vector<T> download(const T* from, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  check(cudaMemcpy(values.data(), from, values.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace kvmesh::test
