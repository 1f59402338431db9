// The kernel that finds the classes of tiles by evaluating a mask: classify.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <string>

#include "kernels/cuda/common/device_mods.hpp"
#include "kernels/cuda/common/kernel_store.hpp"
#include "kernels/cuda/plan/params.hpp"

namespace kvmesh::cuda {

/// The constants that the kernel is compiled for.
struct ClassifyVariant {
  int page_size = 16;
  int group = 1;
  bool per_head = false;  ///< query blocks are of one kv head, else the mask is the same for all
  int lanes = 1;          ///< threads per candidate
};
jit::Program classify_program(const ClassifyVariant& variant, const CudaMods& mods,
                              const std::string& architecture);

class Classifier {
 public:
  /// REQUIRES: `mods` stay where they are. The lanes of `variant` are chosen for each plan.
  Classifier(KernelStore& kernels, const DeviceMods& mods, const ClassifyVariant& variant)
      : store_(&kernels), mods_(&mods), variant_(variant) {}

  /// Compiles the kernels for query blocks of up to `query_block_tokens` tokens.
  void prepare(std::int64_t query_block_tokens) {
    for (std::int64_t tokens : {std::int64_t{1}, query_block_tokens}) kernel(lanes_for(tokens));
  }
  /// Starts on the stream. `query_block_tokens` are those of the longest query block. Compiles at
  /// the first use.
  void classify(const PlanCandidates& candidates, std::int64_t query_block_tokens,
                cudaStream_t stream);

 private:
  int lanes_for(std::int64_t query_block_tokens) const;
  const jit::Kernel& kernel(int lanes);

  KernelStore* store_;
  const DeviceMods* mods_;
  ClassifyVariant variant_;
  std::map<int, jit::Kernel> kernels_;  // by threads per candidate
};

}  // namespace kvmesh::cuda
