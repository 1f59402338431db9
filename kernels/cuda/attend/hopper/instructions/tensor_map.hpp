// The description of a tensor that the copy engine reads. One text for the host and for NVRTC.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

/// CUtensorMap: opaque, made by the driver.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};

}  // namespace kvmesh::cuda
