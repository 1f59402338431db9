// append and copy_pages on a CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <map>

#include "kernels/cuda/kernel_store.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

/// Writes to pools on one device. Keeps the kernels that it has used; to be used by one thread at a
/// time. Both operations start one kernel on `stream`, after what is there, allocate nothing and do
/// not wait; a kind of tensor (dtypes, dims, alignment) costs a compilation when it is first met.
class PoolWriter {
 public:
  explicit PoolWriter(KernelStore& kernels) : store_(&kernels) {}

  /// As kvmesh::append, with `slots` [k.size(0)] on the device. Slots must lie in the pool: they
  /// are not looked at here. @throws InvalidArgument before anything is launched.
  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              const TokenSlot* slots, cudaStream_t stream);

  /// As kvmesh::copy_pages, with `copies` [count] on the device, which must lie in the pool. No
  /// page may be both read and written: unlike the CPU's, they run side by side.
  void copy_pages(const KvPool& pool, const LocalPageCopy* copies, int count, cudaStream_t stream);

 private:
  /// What the two kernels are compiled for.
  struct Kind {
    bool is_append;
    int k_dim, v_dim;
    Dtype fresh, pool;
    bool vectors;
    friend auto operator<=>(const Kind&, const Kind&) = default;
  };
  const jit::Kernel& kernel_for(const Kind& kind);

  KernelStore* store_;
  std::map<Kind, jit::Kernel> kernels_;
};

}  // namespace kvmesh::cuda
