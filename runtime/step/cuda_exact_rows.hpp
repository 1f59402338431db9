// The combine of a reproducible step on a GPU.
#pragma once

#include <cstddef>
#include <memory>

#include "comm/combine/staged/host_copy.hpp"
#include "core/cuda/device_array.hpp"
#include "runtime/step/exact_step.hpp"

namespace kvmesh {

class Mesh;

/// Rows of exact sums in the GPU's memory, which the host combines: it fetches them, merges them
/// with the other ranks', and brings the output back. So a row is rounded by the same code on any
/// number of ranks. Waits for the stream: a graph cannot hold it.
class CudaExactRows {
 public:
  CudaExactRows(Mesh& mesh, std::shared_ptr<RowExchange> rows)
      : mesh_(mesh), combine_(std::move(rows)) {}

  /// As ExactRowsCombine.
  void plan(const CombineShape& shape, const CombineOptions& options, const StepBatch& batch);
  /// [tokens, q_heads] of the plan on the GPU, for attention to fill.
  void* rows() const { return device_.data(); }
  /// @throws InvalidArgument unless `output` has this rank's rows, on the GPU.
  void check_run(const CombineOutput& output) const {
    combine_.check_run(output, DeviceKind::kCuda);
  }
  /// Combines the rows that are complete after the work on `stream`, with `sinks` [q_heads] on the
  /// GPU unless they are empty. The output is there on return.
  /// @throws Unsupported if the stream is being captured. Collective over the kv axis.
  void run(const CombineOutput& output, const ConstTensorView& sinks, Stream stream);

  std::int64_t device_bytes() const { return static_cast<std::int64_t>(device_.size_bytes()); }
  std::int64_t host_bytes() const;

 private:
  Mesh& mesh_;
  ExactRowsCombine combine_;
  cuda::DeviceArray<std::byte> device_;
  std::size_t used_ = 0;  // bytes of the batch's rows
  HostCopy o_, lse_;
  std::vector<float> sinks_;
};

}  // namespace kvmesh
