// The members of the groups into which a communicator is split.
#pragma once

#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Returns the members of the caller's new group, as ranks of `comm`: those that passed the same
/// `color`, ordered by key, then by rank.
/// @throws InvalidArgument if the color is negative.
/// Collective.
std::vector<Rank> split_members(Communicator& comm, int color, int key);

}  // namespace kvmesh
