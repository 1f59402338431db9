// Mods in the form that kernels take: their text, and the buffers they captured, on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/common/upload.hpp"
#include "kernels/mods/emit_cuda.hpp"

namespace kvmesh::cuda {

class DeviceMods {
 public:
  DeviceMods(const ModGraph& score, const ModGraph& mask);

  const CudaMods& text() const { return mods_; }
  /// The buffers; their addresses are constant. REQUIRES: sent.
  const ModBuffers& buffers() const { return buffers_; }

  /// Sends the buffers on the stream if any has changed since they were sent. Waits until it
  /// `is_taken`.
  void send(cudaStream_t stream);
  /// True if the device has taken the last buffers sent.
  bool is_taken() const { return upload_.is_taken(); }
  std::size_t size_bytes() const { return upload_.size_bytes(); }

 private:
  CudaMods mods_;
  Upload upload_;
  std::vector<std::uint64_t> sent_versions_;
  ModBuffers buffers_{};
};

}  // namespace kvmesh::cuda
