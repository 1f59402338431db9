#include "tests/gpu/gpu_support.hpp"

namespace kvmesh::test {

cuda::KernelStore& kernels() {
  static cuda::KernelStore store(0);
  return store;
}

}  // namespace kvmesh::test
