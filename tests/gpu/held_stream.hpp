// A stream whose work stands still until it is released.
#pragma once

#include <atomic>

#include "kvmesh/stream.hpp"
#include "tests/gpu/gpu_support.hpp"

namespace kvmesh::test {

class HeldStream {
 public:
  HeldStream() {
    const auto hold = [](void* released) {
      static_cast<std::atomic<bool>*>(released)->wait(false);
    };
    check(cudaLaunchHostFunc(stream_, hold, &released_));
  }
  ~HeldStream() {
    release();
    stream_.wait();
  }
  void release() {
    released_ = true;
    released_.notify_all();
  }
  kvmesh::Stream view() const { return {static_cast<cudaStream_t>(stream_)}; }

 private:
  std::atomic<bool> released_ = false;
  Stream stream_;
};

}  // namespace kvmesh::test
