#include "runtime/step/cuda_move_stream.hpp"

#include "core/cuda/check.hpp"
#include "core/device_wait.hpp"
#include "kvmesh/device_memory.hpp"

namespace kvmesh {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

cudaStream_t new_stream(Device device) {
  use_device(device);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream for moves");
  return stream;
}

}  // namespace

CudaMoveStream::CudaMoveStream(Mesh& mesh) : mesh_(mesh), stream_(new_stream(mesh.device())) {}

void CudaMoveStream::move(const PageMoves& moves) {
  Communicator& world = mesh_.world();
  wait_until([this] { return copier_.is_ready(); }, {world.rank(), world.deadline(), "move pages"});
  is_busy_ = true;
  copier_.move(moves, stream_.get());
  check(cudaEventRecord(moved_.get(), stream_.get()), "recording that pages have moved");
}

// A device that has failed calls no more.
void CudaMoveStream::call(std::function<void(bool)> work) {
  using Work = std::function<void(bool)>;
  auto kept = std::make_unique<Work>(std::move(work));
  const auto run = [](void* data) {
    const std::unique_ptr<Work> mine(static_cast<Work*>(data));
    (*mine)(true);
  };
  is_busy_ = true;
  check(cudaLaunchHostFunc(stream_.get(), run, kept.get()), "calling the host after moves");
  static_cast<void>(kept.release());  // run() destroys it
}

void CudaMoveStream::after(Stream stream) {
  check(cudaEventRecord(reached_.get(), native(stream)), "ordering moves after a stream");
  check(cudaStreamWaitEvent(stream_.get(), reached_.get()), "ordering moves after a stream");
}

void CudaMoveStream::before(Stream stream) {
  if (is_done()) return;
  check(cudaStreamWaitEvent(native(stream), moved_.get()), "ordering a stream after moves");
}

bool CudaMoveStream::is_done() {
  if (!is_busy_) return true;
  const cudaError_t status = cudaStreamQuery(stream_.get());
  if (status == cudaErrorNotReady) return false;
  check(status, "moving pages");
  is_busy_ = false;
  return true;
}

}  // namespace kvmesh
