#include "kvmesh/error.hpp"
#include "runtime/step/backend.hpp"

namespace kvmesh {

std::unique_ptr<Backend> make_cuda_backend(Mesh&, PageAllocator*) {
  throw Unsupported("this build has no CUDA backend: use the device 'cpu' or 'auto'");
}

}  // namespace kvmesh
