// The kernel that finds the classes of tiles by evaluating a mask: classify.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>

#include "kernels/cuda/device_mods.hpp"
#include "kernels/cuda/kernel_store.hpp"
#include "kernels/cuda/plan_params.hpp"

namespace kvmesh::cuda {

class Classifier {
 public:
  /// `mods` stay where they are. `per_head`: lists are of one kv head, else the mask is the same
  /// for all.
  Classifier(KernelStore& kernels, const DeviceMods& mods, int page_size, int group, bool per_head)
      : store_(&kernels), mods_(&mods), page_size_(page_size), group_(group), per_head_(per_head) {}

  /// Starts on the stream. `list_tokens`: of the longest list. Compiles at the first use.
  void classify(const PlanItems& items, std::int64_t list_tokens, cudaStream_t stream);

 private:
  const jit::Kernel& kernel(int lanes);

  KernelStore* store_;
  const DeviceMods* mods_;
  int page_size_, group_;
  bool per_head_;
  std::map<int, jit::Kernel> kernels_;  // by threads an item
};

}  // namespace kvmesh::cuda
