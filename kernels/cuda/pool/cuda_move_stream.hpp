// Page moves on a stream of a GPU.
#pragma once

#include "core/cuda/memory.hpp"
#include "core/move_stream.hpp"
#include "kernels/cuda/common/device_event.hpp"
#include "kernels/cuda/pool/page_copier.hpp"

namespace kvmesh {

class CudaMoveStream final : public MoveStream {
 public:
  using IsDone = std::function<bool()>;
  /// `wait(is_done)` blocks until is_done() returns true, or throws: before moves whose lists have
  /// no room yet.
  CudaMoveStream(int device, std::function<void(const IsDone&)> wait);

  void move(const PageMoves& moves) override;
  void call(std::function<void(bool)> work, bool holds) override;
  void after(Stream stream) override;
  void before(Stream stream) override;
  bool is_done() override;

 private:
  cudaStream_t native() const { return static_cast<cudaStream_t>(stream_.get()); }

  std::function<void(const IsDone&)> wait_;
  cuda_memory::OwnedStream stream_;
  cuda_memory::OwnedStream calls_;  // that hold no moves
  cuda::DeviceEvent reached_;       // by the stream that moves run after
  cuda::DeviceEvent moved_;         // before the calls, for which no stream waits
  cuda::PageCopier copier_;
  bool is_busy_ = false;  // each query of the driver takes over a microsecond
};

}  // namespace kvmesh
