// What runs on a rank's device: the CPU's threads, or a GPU.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "kvmesh/kv_cache.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {

/// What a step's kernels are made for.
struct StepOptions {
  AttentionShape shape;
  Dtype pool_dtype = Dtype::kFloat32;
  AttentionOptions attention{};           ///< without a block mask
  const BlockMask* block_mask = nullptr;  ///< outlives the step
  CombineOptions combine{};               ///< without participation
  std::optional<StepLimits> limits{};     ///< with its `pages` worked out
};

/// The kernels of a step: planned once a step, run once a layer. With limits, tensors have the
/// limits' tokens.
class StepKernels {
 public:
  virtual ~StepKernels() = default;
  /// Refuses a batch that is more than a plan can hold, before the allocator has seen it.
  /// @throws InvalidArgument.
  virtual void check(std::span<const SequenceSize> batch) const = 0;
  /// The batch outlives the plan.
  virtual void plan(const StepBatch& batch, Stream stream) = 0;
  virtual void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                      Stream stream) = 0;
  virtual void attend_partial(const ConstTensorView& q, const KvPool& pool, const Partial& out,
                              Stream stream) = 0;
  /// REQUIRES: a plan. @throws InvalidArgument if `combine` would.
  virtual void check_combine(const Partial& mine, const CombineOutput& output) const = 0;
  /// Collective over the kv axis.
  virtual void combine(const Partial& mine, const CombineOutput& output, Stream stream) = 0;
  /// REQUIRES: the device has planned.
  virtual TileCounts tiles() const = 0;
  /// Device memory beside the pools; and what changes when captured graphs become invalid.
  virtual std::int64_t workspace_bytes() const = 0;
  virtual std::uint64_t generation() const = 0;
};

/// One rank's device. What takes a stream is ordered after what the stream holds; the CPU is done
/// with it when the call returns.
class Backend {
 public:
  virtual ~Backend() = default;

  /// For batches like `first`, which the allocator has not seen yet; plans none.
  virtual std::unique_ptr<StepKernels> make_step(const StepOptions& options,
                                                 std::span<const BatchEntry> first) = 0;
  virtual BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) = 0;
  /// The sequence is no more.
  virtual void forget(SequenceId sequence) = 0;
  /// Waits for all that the device was given, on any stream.
  virtual void settle() = 0;
  /// Done when it returns.
  virtual void copy_pages(const KvPool& pool, std::span<const LocalPageCopy> copies) = 0;
};

/// The backend of the mesh's device.
std::unique_ptr<Backend> make_backend(Mesh& mesh);

std::unique_ptr<Backend> make_cpu_backend(Mesh& mesh);
/// @throws Unsupported in a build without CUDA.
std::unique_ptr<Backend> make_cuda_backend(Mesh& mesh);

}  // namespace kvmesh
