// Where the CUDA compiler is missing.
#include "launch/bench/machine.hpp"

namespace kvmesh::bench {

std::unique_ptr<Machine> make_gpu_machine(Mesh&, std::int64_t) {
  throw Unsupported("bench: built without nvcc, which compiles the kernels of the GPU's ceilings");
}

}  // namespace kvmesh::bench
