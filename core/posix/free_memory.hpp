// The free memory of a device.
#pragma once

#include <cstddef>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Returns the bytes available for new blocks: on a GPU the free memory, on the host the free
/// memory and the page cache of files. 0 if the system does not report it.
std::size_t free_memory(Device device);

}  // namespace kvmesh
