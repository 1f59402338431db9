// A build without CUDA.
#include "launch/bench/machine.hpp"

namespace kvmesh::bench {

std::unique_ptr<Machine> make_gpu_machine(Mesh&, std::int64_t) {
  throw Unsupported("bench: this build has no CUDA backend");
}

}  // namespace kvmesh::bench
