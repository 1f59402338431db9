#include "kernels/cuda/common/upload.hpp"

namespace kvmesh::cuda {

bool Upload::is_taken() const {
  if (is_known_taken_) return true;
  const cudaError_t status = cudaEventQuery(taken_.get());
  if (status == cudaErrorNotReady) return false;
  check(status, "polling for the copy of the last plan");
  return is_known_taken_ = true;
}

void Upload::begin(std::size_t size_bytes) {
  if (!is_known_taken_) {
    check(cudaEventSynchronize(taken_.get()), "waiting until the last plan was copied");
  }
  used_ = 0;
  if (size_bytes == 0) return;
  const bool has_grown = device_.reserve(size_bytes);
  if (host_ && !has_grown) return;
  outgrown_.push_back(std::move(host_));
  void* data = nullptr;
  check(cudaMallocHost(&data, device_.capacity()), "allocating host memory for plans");
  host_.reset(static_cast<std::byte*>(data));
}

const void* Upload::add_bytes(const void* values, std::size_t size_bytes) {
  const void* there = device_.data() + used_;
  if (size_bytes > 0) std::memcpy(host_.get() + used_, values, size_bytes);
  used_ += bytes_of<std::byte>(size_bytes);
  return there;
}

void Upload::send(cudaStream_t stream) {
  is_known_taken_ = false;
  if (used_ > 0) {
    check(cudaMemcpyAsync(device_.data(), host_.get(), used_, cudaMemcpyHostToDevice, stream),
          "copying a plan");
  }
  check(cudaEventRecord(taken_.get(), stream), "recording that a plan was copied");
}

}  // namespace kvmesh::cuda
