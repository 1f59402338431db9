#include "tests/gpu/gpu_support.hpp"

#include "kernels/cuda/load_built_kernels.hpp"

namespace kvmesh::test {

cuda::KernelStore& kernels() {
  static cuda::KernelStore store = [] {
    cuda::load_built_kernels();
    return cuda::KernelStore(0);
  }();
  return store;
}

}  // namespace kvmesh::test
