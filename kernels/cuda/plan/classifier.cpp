#include "kernels/cuda/plan/classifier.hpp"

#include "kernels/cuda/common/sources.hpp"
#include "kernels/cuda/plan/split.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kThreads = 256;
// A page with more (query, key) pairs than this is classified by a warp instead of a thread.
constexpr std::int64_t kPairsPerThread = 64;

}  // namespace

jit::Program classify_program(const ClassifyVariant& variant, const CudaMods& mods,
                              const std::string& architecture) {
  jit::Program program{.files = cuda_kernel_sources(),
                       .source = "kernels/cuda/plan/classify.cuh",
                       .mods = mods.text,
                       .architecture = architecture};
  program.constants.set("kLanes", variant.lanes)
      .set("kPageSize", variant.page_size)
      .set("kGroup", variant.group)
      .set("kPerHead", variant.per_head);
  return program;
}

int Classifier::lanes_for(std::int64_t query_block_tokens) const {
  return query_block_tokens * variant_.page_size > kPairsPerThread ? 32 : 1;
}

void Classifier::classify(const PlanCandidates& candidates, std::int64_t query_block_tokens,
                          cudaStream_t stream) {
  const int lanes = lanes_for(query_block_tokens);
  const std::int64_t threads = std::int64_t{candidates.candidate_count} * lanes;
  if (threads == 0) return;
  kernel(lanes).launch({.stream = stream,
                        .grid = dim3(static_cast<unsigned>(ceil_div(threads, kThreads))),
                        .block = dim3(kThreads)},
                       ClassifyParams{candidates, mods_->buffers()});
}

const jit::Kernel& Classifier::kernel(int lanes) {
  const auto found = kernels_.find(lanes);
  if (found != kernels_.end()) return found->second;
  variant_.lanes = lanes;
  const jit::Program program = classify_program(variant_, mods_->text(), store_->architecture());
  return kernels_.emplace(lanes, store_->get(program, "kvmesh_classify")).first->second;
}

}  // namespace kvmesh::cuda
