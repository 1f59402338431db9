#include "kernels/cuda/upload.hpp"

#include <algorithm>

namespace kvmesh::cuda {

void Upload::begin(std::size_t size_bytes) {
  check(cudaEventSynchronize(taken_.get()), "waiting until the last plan was copied");
  used_ = 0;
  if (size_bytes <= capacity_) return;
  const std::size_t capacity = std::max(size_bytes, 2 * capacity_);
  capacity_ = 0;
  host_.reset();
  void* data = nullptr;
  check(cudaMallocHost(&data, capacity), "allocating host memory for plans");
  host_.reset(static_cast<std::byte*>(data));
  device_.reserve(capacity);
  capacity_ = capacity;
}

const void* Upload::add_bytes(const void* values, std::size_t size_bytes) {
  const void* there = device_.data() + used_;
  if (size_bytes > 0) std::memcpy(host_.get() + used_, values, size_bytes);
  used_ += bytes_of<std::byte>(size_bytes);
  return there;
}

void Upload::send(cudaStream_t stream) {
  if (used_ > 0) {
    check(cudaMemcpyAsync(device_.data(), host_.get(), used_, cudaMemcpyHostToDevice, stream),
          "copying a plan");
  }
  check(cudaEventRecord(taken_.get(), stream), "recording that a plan was copied");
}

}  // namespace kvmesh::cuda
