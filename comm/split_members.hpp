// Who goes where when a communicator is split.
#pragma once

#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Collective. The ranks of `comm` that gave the caller's `color`, ordered by key, then by rank:
/// the new group, each place given as a rank of `comm`. @throws InvalidArgument if the color is
/// negative.
std::vector<Rank> split_members(Communicator& comm, int color, int key);

}  // namespace kvmesh
