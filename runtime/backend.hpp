// What runs on a rank's device: the CPU's threads, or a GPU.
#pragma once

#include <memory>
#include <span>

#include "kvmesh/kv_cache.hpp"
#include "runtime/step_batch.hpp"

namespace kvmesh {

/// The kernels of one step, made once and run once a layer.
class StepKernels {
 public:
  virtual ~StepKernels() = default;
  virtual void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                      Stream stream) = 0;
  virtual void attend_partial(const ConstTensorView& q, const KvPool& pool, const Partial& out,
                              Stream stream) = 0;
  virtual TileCounts tiles() const = 0;
};

/// One rank's device. What takes a stream is ordered after what the stream holds; the CPU is done
/// with it when the call returns.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::unique_ptr<StepKernels> plan(const AttentionShape& shape, Dtype pool_dtype,
                                            const StepBatch& batch,
                                            const AttentionOptions& options) = 0;
  /// Waits for all that the device was given, on any stream.
  virtual void settle() = 0;
  /// Done when it returns.
  virtual void copy_pages(const KvPool& pool, std::span<const LocalPageCopy> copies) = 0;
  /// Collective over the communicator that the backend was made with.
  virtual void combine(const Partial& mine, const CombineOptions& options,
                       const CombineOutput& output, Stream stream) = 0;
};

/// The backend of the mesh's device.
std::unique_ptr<Backend> make_backend(Mesh& mesh);

std::unique_ptr<Backend> make_cpu_backend(Mesh& mesh);
/// @throws Unsupported in a build without CUDA.
std::unique_ptr<Backend> make_cuda_backend(Mesh& mesh);

}  // namespace kvmesh
