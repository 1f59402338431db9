// The backend over this machine's cores.
#include "runtime/backend.hpp"

namespace kvmesh {
namespace {

class CpuStep : public StepKernels {
 public:
  CpuStep(const AttentionShape& shape, const StepBatch& batch, const AttentionOptions& options,
          ThreadPool& threads)
      : slots_(batch.slots), attention_(shape, batch.attention, options), threads_(threads) {}

  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream) override {
    kvmesh::append(pool, k, v, slots_, threads_);
  }
  void attend_partial(const ConstTensorView& q, const KvPool& pool, const Partial& out,
                      Stream) override {
    attention_.attend_partial(q, {pool.k, pool.v}, out, threads_);
  }
  TileCounts tiles() const override { return attention_.tiles(); }

 private:
  std::vector<TokenSlot> slots_;
  AttentionPlan attention_;
  ThreadPool& threads_;
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(Mesh& mesh) : threads_(mesh.threads()), combiner_(mesh.kv()) {}

  std::unique_ptr<StepKernels> plan(const AttentionShape& shape, Dtype, const StepBatch& batch,
                                    const AttentionOptions& options) override {
    return std::make_unique<CpuStep>(shape, batch, options, threads_);
  }
  void settle() override {}
  void copy_pages(const KvPool& pool, std::span<const LocalPageCopy> copies) override {
    kvmesh::copy_pages(pool, copies);
  }
  void combine(const Partial& mine, const CombineOptions& options, const CombineOutput& output,
               Stream) override {
    combiner_(mine, options, output);
  }

 private:
  ThreadPool& threads_;
  Combiner combiner_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(Mesh& mesh) { return std::make_unique<CpuBackend>(mesh); }

std::unique_ptr<Backend> make_backend(Mesh& mesh) {
  return mesh.device().kind == DeviceKind::kCuda ? make_cuda_backend(mesh) : make_cpu_backend(mesh);
}

}  // namespace kvmesh
