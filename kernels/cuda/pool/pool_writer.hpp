// append on a CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <string>

#include "kernels/cuda/common/kernel_store.hpp"
#include "kernels/jit/program.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

struct AppendParams;

/// The constants that append's kernel is compiled for.
struct AppendVariant {
  int k_dim = 0;
  int v_dim = 0;                   ///< 0 for latent pages
  Dtype fresh = Dtype::kBFloat16;  ///< dtype of the new rows
  Dtype pool = Dtype::kBFloat16;
  /// Moves 16 bytes per thread: one dtype, and rows begin and end at multiples of 16 bytes.
  bool vectors = true;
  friend auto operator<=>(const AppendVariant&, const AppendVariant&) = default;
};
jit::Program append_program(const AppendVariant& variant, const std::string& architecture);

/// The constants that append's kernel for float8 pages is compiled for.
struct AppendFloat8Variant {
  int k_dim = 0;
  int v_dim = 0;                   ///< 0 for latent pages
  Dtype fresh = Dtype::kBFloat16;  ///< dtype of the new rows
  bool per_token = true;           ///< each row gets a scale of its own
  friend auto operator<=>(const AppendFloat8Variant&, const AppendFloat8Variant&) = default;
};
jit::Program append_float8_program(const AppendFloat8Variant& variant,
                                   const std::string& architecture);

/// Writes to pools on one device. Keeps the kernels that it has used; one thread at a time. append
/// starts one kernel on `stream`. It allocates nothing and does not wait; the first use of a kind
/// of tensor (dtypes, dims, alignment) costs a compilation.
class PoolWriter {
 public:
  explicit PoolWriter(KernelStore& kernels) : store_(&kernels) {}

  /// Checks what `append` requires of a pool beyond check_writable_pool and check_new_tokens, which
  /// are the same on every device and come first.
  /// @throws InvalidArgument if keys and values have different kinds of scales.
  static void check(const KvPool& pool);
  /// As kvmesh::append, with `slots` [k.size(0)] on the device. REQUIRES: tensors that have passed
  /// `check`, and slots in the pool: this checks nothing.
  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              const TokenSlot* slots, cudaStream_t stream);

 private:
  void append_float8(const KvPool& pool, const ConstTensorView& k, int v_dim,
                     const AppendParams& params, cudaStream_t stream);
  const jit::Kernel& kernel_for(const AppendVariant& variant);
  const jit::Kernel& kernel_for(const AppendFloat8Variant& variant);

  KernelStore* store_;
  std::map<AppendVariant, jit::Kernel> append_kernels_;
  std::map<AppendFloat8Variant, jit::Kernel> append_float8_kernels_;
};

}  // namespace kvmesh::cuda
