// In place of natural_lse.cpp in a build without CUDA.
#include "kvmesh/error.hpp"
#include "kvmesh/nccl.hpp"

namespace kvmesh {

Partial to_natural(const Base2Partial&, Stream) {
  throw Unsupported("to_natural: this build of kvmesh has no CUDA");
}

}  // namespace kvmesh
