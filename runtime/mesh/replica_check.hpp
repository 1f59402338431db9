// Compares the ranks' copies of the allocator.
#pragma once

#include "kvmesh/allocator.hpp"
#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Compares the ranks' allocators.
/// @throws DigestMismatch, naming the first operation in which they differ.
/// Collective.
void check_replicas(const PageAllocator& allocator, Communicator& world);

}  // namespace kvmesh
