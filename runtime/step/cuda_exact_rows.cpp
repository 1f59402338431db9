#include "runtime/step/cuda_exact_rows.hpp"

#include <cuda_runtime_api.h>

#include "core/copy_rows.hpp"
#include "core/cuda/check.hpp"
#include "kvmesh/mesh.hpp"

namespace kvmesh {
namespace {

void refuse_in_capture(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream.handle), &status),
        "asking whether a stream is captured");
  if (status == cudaStreamCaptureStatusNone) return;
  throw Unsupported("run: a reproducible cache combines on the host, which no graph can hold");
}

void copy(void* to, const void* from, std::size_t bytes, Device device) {
  if (bytes == 0) return;
  copy_rows(
      {.to = to, .to_pitch = bytes, .from = from, .from_pitch = bytes, .width = bytes, .count = 1},
      device);
}

}  // namespace

void CudaExactRows::plan(const CombineShape& shape, const CombineOptions& options,
                         const StepBatch& batch) {
  combine_.plan(shape, options, batch);
  const auto row_bytes = static_cast<std::size_t>(exact_row_bytes(static_cast<int>(shape.dim)));
  used_ = static_cast<std::size_t>(batch.query_tokens * shape.heads) * row_bytes;
  device_.reserve(static_cast<std::size_t>(shape.tokens * shape.heads) * row_bytes);
}

void CudaExactRows::run(const CombineOutput& output, const ConstTensorView& sinks, Stream stream) {
  constexpr std::string_view kOperation = "combine";
  refuse_in_capture(stream);
  check_run(output);
  CombineOutput result{.o = o_.of(output.o)};
  if (!output.lse.empty()) result.lse = lse_.of(output.lse);
  sinks_.resize(static_cast<std::size_t>(sinks.empty() ? 0 : sinks.size(0)));

  const Device device = mesh_.device();
  mesh_.wait(stream, kOperation);
  copy(combine_.rows().bytes(0), device_.data(), used_, device);
  copy(sinks_.data(), sinks.data, sinks_.size() * sizeof(float), device);
  mesh_.wait({}, kOperation);
  combine_.run(result, sinks.empty() ? nullptr : sinks_.data());
  o_.upload();
  if (!output.lse.empty()) lse_.upload();
  mesh_.wait({}, kOperation);
}

std::int64_t CudaExactRows::host_bytes() const {
  return combine_.held_bytes() + static_cast<std::int64_t>(o_.held_bytes() + lse_.held_bytes() +
                                                           sinks_.capacity() * sizeof(float));
}

}  // namespace kvmesh
