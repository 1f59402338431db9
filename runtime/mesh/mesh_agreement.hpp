// Checks that all ranks make the same mesh.
#pragma once

#include <cstdint>
#include <exception>
#include <vector>

#include "kvmesh/mesh.hpp"

namespace kvmesh {

/// Compares the ranks' options that must be equal, and the kind of their devices. `refusal` is what
/// this rank refuses its own options with, or null. Returns a hash of each rank's host name.
/// @throws `refusal`, if there is one; InvalidArgument, naming a rank and a field, if another rank
/// has refused its options or they differ.
/// Collective over `world`.
std::vector<std::uint64_t> agree_on_mesh(Communicator& world, const MeshOptions& options,
                                         const Membership& members, Device device,
                                         const std::exception_ptr& refusal);

}  // namespace kvmesh
