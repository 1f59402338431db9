// Groups whose errors name ranks of the communicator that they were split from.
#pragma once

#include <memory>
#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Splits `whole` as Communicator::split does. The new groups, and those that are split from them,
/// call each rank (`name_of`) as `whole` does, also in Timeout and PeerLost.
/// @throws as Communicator::split.
/// Collective.
std::unique_ptr<Communicator> split_named(Communicator& whole, int color, int key);

/// Returns the name of each rank of `comm`.
std::vector<Rank> names_in(const Communicator& comm);

}  // namespace kvmesh
