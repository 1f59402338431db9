// Owners of CUDA handles. They are the library's UniqueHandle (core/owners) once more, since
// launch/ includes public headers alone.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>

#include "kvmesh/error.hpp"

namespace kvmesh::bench {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw Error(std::string("bench: ") + cudaGetErrorString(status));
}

/// Owns a CUDA handle, which `kDestroy` destroys.
template <class Handle, cudaError_t (*kDestroy)(Handle)>
class CudaHandle {
 public:
  explicit CudaHandle(Handle handle) : handle_(handle) {}
  Handle get() const { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(Handle handle) const { static_cast<void>(kDestroy(handle)); }
  };
  std::unique_ptr<std::remove_pointer_t<Handle>, Destroy> handle_;
};

using CudaStream = CudaHandle<cudaStream_t, cudaStreamDestroy>;
using CudaGraph = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

inline CudaStream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return CudaStream(stream);
}

/// A CUDA event.
class CudaEvent {
 public:
  CudaEvent() : event_(make()) {}
  void record(cudaStream_t stream) const { check(cudaEventRecord(event_.get(), stream)); }
  /// REQUIRES: both events have passed.
  double seconds_since(const CudaEvent& earlier) const {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, earlier.event_.get(), event_.get()));
    return ms * 1e-3;
  }

 private:
  static cudaEvent_t make() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreate(&event));
    return event;
  }
  CudaHandle<cudaEvent_t, cudaEventDestroy> event_;
};

/// Captures the work that `enqueue` gives to the stream as a graph; none of it runs yet.
inline CudaGraph capture(cudaStream_t stream, const std::function<void()>& enqueue) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    throw;
  }
  check(cudaStreamEndCapture(stream, &graph));
  const CudaHandle<cudaGraph_t, cudaGraphDestroy> owner(graph);
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph, 0));
  return CudaGraph(executable);
}

}  // namespace kvmesh::bench
