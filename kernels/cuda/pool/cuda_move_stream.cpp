#include "kernels/cuda/pool/cuda_move_stream.hpp"

#include "core/cuda/check.hpp"

namespace kvmesh {
namespace {

cudaStream_t handle_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

}  // namespace

CudaMoveStream::CudaMoveStream(int device, std::function<void(const IsDone&)> wait)
    : wait_(std::move(wait)),
      stream_(cuda_memory::make_stream(device)),
      calls_(cuda_memory::make_stream(device)) {}

void CudaMoveStream::move(const PageMoves& moves) {
  wait_([this] { return copier_.is_ready(); });
  is_busy_ = true;
  try {
    copier_.move(moves, native());
  } catch (...) {
    // Copies that were started go on: what comes after them waits for this event.
    static_cast<void>(cudaEventRecord(moved_.get(), native()));
    throw;
  }
  check(cudaEventRecord(moved_.get(), native()), "recording that pages have moved");
}

// A device that has failed calls no more.
void CudaMoveStream::call(std::function<void(bool)> work, bool holds) {
  using Work = std::function<void(bool)>;
  auto kept = std::make_unique<Work>(std::move(work));
  const auto run = [](void* data) {
    const std::unique_ptr<Work> mine(static_cast<Work*>(data));
    (*mine)(true);
  };
  is_busy_ = true;
  auto* const stream = holds ? native() : static_cast<cudaStream_t>(calls_.get());
  if (!holds)
    check(cudaStreamWaitEvent(stream, moved_.get()), "ordering a call of the host after moves");
  check(cudaLaunchHostFunc(stream, run, kept.get()), "calling the host after moves");
  static_cast<void>(kept.release());  // run() destroys it
}

void CudaMoveStream::after(Stream stream) {
  check(cudaEventRecord(reached_.get(), handle_of(stream)), "ordering moves after a stream");
  check(cudaStreamWaitEvent(native(), reached_.get()), "ordering moves after a stream");
}

void CudaMoveStream::before(Stream stream) {
  if (is_done()) return;
  check(cudaStreamWaitEvent(handle_of(stream), moved_.get()), "ordering a stream after moves");
}

bool CudaMoveStream::is_done() {
  if (!is_busy_) return true;
  for (void* const stream : {stream_.get(), calls_.get()}) {
    const cudaError_t status = cudaStreamQuery(static_cast<cudaStream_t>(stream));
    if (status == cudaErrorNotReady) return false;
    check(status, "moving pages");
  }
  is_busy_ = false;
  return true;
}

}  // namespace kvmesh
