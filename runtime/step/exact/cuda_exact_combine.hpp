// The combine of a reproducible step on GPUs, of several ranks.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "comm/combine/exact/exact_combine.hpp"
#include "core/cuda/device_array.hpp"
#include "kernels/cuda/attend/exact/exact_merge.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {

/// Planned once per step, run once per layer: the rows that attention left on the device go to
/// their owners by way of the host, which add them; each owner's device then rounds its rows, as
/// that of a single rank does. Grows, never shrinks.
class CudaExactCombine {
 public:
  /// `rows` is over the kv axis. REQUIRES: mesh and kernels outlive it.
  /// @throws InvalidArgument for a strategy that the host's way does not have.
  CudaExactCombine(Mesh& mesh, cuda::KernelStore& kernels, std::shared_ptr<RowExchange> rows,
                   const CombineOptions& options, int v_dim);

  /// `tokens` is the number of tokens that tensors have room for.
  void plan(const AttentionShape& shape, const StepBatch& batch, std::int64_t tokens);
  /// REQUIRES: a plan, as for all that follows. @throws InvalidArgument.
  void check_run(const CombineOutput& output) const {
    combine_.check_run(output, DeviceKind::kCuda);
  }
  /// ExactRows [tokens, q_heads] on the device, for attention to fill.
  char* rows() const { return mine_.data(); }
  /// Waits for the stream, and for the other ranks. `sinks` [q_heads] may be null.
  /// @throws Unsupported while the stream is being captured; as ExactCombine. Collective over the
  /// kv axis.
  void run(const CombineOutput& output, const float* sinks, Stream stream);

  std::size_t workspace_bytes() const { return mine_.size_bytes() + merged_.size_bytes(); }
  std::size_t host_bytes() const {
    return host_mine_.capacity() + host_merged_.capacity() + combine_.workspace_bytes();
  }

 private:
  void exchange(Stream stream);

  Mesh& mesh_;
  CombineOptions options_;
  int v_dim_;
  std::int64_t rows_ = 0;  // of this rank's attention
  ExactCombine combine_;
  cuda::ExactMerge merge_;
  cuda::DeviceArray<char> mine_;
  cuda::DeviceArray<char> merged_;  // the merge of all rows, its count, the rows
  std::vector<std::byte> host_mine_;
  std::vector<std::byte> host_merged_;  // the same
};

}  // namespace kvmesh
