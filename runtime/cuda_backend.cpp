// The backend over one GPU.
#include <cuda_runtime_api.h>

#include <optional>

#include "core/cuda_check.hpp"
#include "kernels/cuda/attend_cuda.hpp"
#include "kernels/cuda/pool_writer.hpp"
#include "kvmesh/nccl.hpp"
#include "runtime/backend.hpp"
#include "runtime/staged_combine.hpp"

namespace kvmesh {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

class CudaStep : public StepKernels {
 public:
  CudaStep(cuda::KernelStore& kernels, cuda::PoolWriter& writer, const AttentionShape& shape,
           Dtype pool_dtype, const StepBatch& batch, const AttentionOptions& options)
      : writer_(writer),
        slots_(cuda::upload(std::span<const TokenSlot>(batch.slots))),
        attention_(kernels, shape, batch.attention, options,
                   {.q = pool_dtype, .pool = pool_dtype}) {}

  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream stream) override {
    writer_.append(pool, k, v, slots_.as<TokenSlot>(), native(stream));
  }
  void attend_partial(const ConstTensorView& q, const KvPool& pool, const Partial& out,
                      Stream stream) override {
    attention_.launch(q, {pool.k, pool.v}, out, native(stream));
  }
  TileCounts tiles() const override { return attention_.tiles(); }

 private:
  cuda::PoolWriter& writer_;
  cuda::DeviceBuffer slots_;
  cuda::CudaAttend attention_;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(Mesh& mesh)
      : kernels_(mesh.device().index), writer_(kernels_), staged_(mesh.kv()) {
    if (NcclGroup* gpus = mesh.gpus()) combiner_.emplace(*gpus);
  }

  std::unique_ptr<StepKernels> plan(const AttentionShape& shape, Dtype pool_dtype,
                                    const StepBatch& batch,
                                    const AttentionOptions& options) override {
    return std::make_unique<CudaStep>(kernels_, writer_, shape, pool_dtype, batch, options);
  }

  void settle() override { check(cudaDeviceSynchronize(), "waiting for the device"); }

  void copy_pages(const KvPool& pool, std::span<const LocalPageCopy> copies) override {
    const cuda::DeviceBuffer list = cuda::upload(copies);
    writer_.copy_pages(pool, list.as<LocalPageCopy>(), static_cast<int>(copies.size()), nullptr);
    check(cudaStreamSynchronize(nullptr), "copying pages");
  }

  void combine(const Partial& mine, const CombineOptions& options, const CombineOutput& output,
               Stream stream) override {
    if (!combiner_) return staged_(mine, options, output, stream);
    combiner_->plan(mine.o.size(0), mine.o.size(1), mine.o.size(2), options, stream);
    combiner_->run(mine, output, stream);
  }

 private:
  cuda::KernelStore kernels_;
  cuda::PoolWriter writer_;
  StagedCombine staged_;
  std::optional<DeviceCombiner> combiner_;  // where NCCL can serve
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(Mesh& mesh) {
  return std::make_unique<CudaBackend>(mesh);
}

}  // namespace kvmesh
