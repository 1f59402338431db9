// How much memory a device has left.
#pragma once

#include <cstddef>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Bytes that new blocks can have now: of a GPU, what nobody has taken; of the host, what is free
/// or holds copies of files. 0 if the system does not say.
std::size_t free_memory(Device device);

}  // namespace kvmesh
