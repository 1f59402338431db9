#include "kernels/cuda/plan_arrays.hpp"

namespace kvmesh::cuda {

Staging::Staging() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  taken_.reset(event);
}

void Staging::begin(std::size_t size_bytes) {
  check(cudaEventSynchronize(taken_.get()), "waiting until the last plan was copied");
  used_ = 0;
  if (size_bytes <= capacity_) return;
  capacity_ = 0;
  void* data = nullptr;
  check(cudaMallocHost(&data, size_bytes), "allocating host memory for plans");
  data_.reset(static_cast<std::byte*>(data));
  capacity_ = size_bytes;
}

void Staging::copy_bytes(const void* from, std::size_t size_bytes, void* to, cudaStream_t stream) {
  if (size_bytes == 0) return;
  std::byte* here = data_.get() + used_;
  std::memcpy(here, from, size_bytes);
  used_ += padded(size_bytes);
  check(cudaMemcpyAsync(to, here, size_bytes, cudaMemcpyHostToDevice, stream), "copying a plan");
}

void Staging::end(cudaStream_t stream) {
  check(cudaEventRecord(taken_.get(), stream), "recording that a plan was copied");
}

}  // namespace kvmesh::cuda
