// Errors of all groups that name the ranks of the job.
#pragma once

#include <memory>

#include "kvmesh/communicator.hpp"

namespace kvmesh::launch {

/// Returns a communicator like `world`. Groups that are split from it throw Timeout and PeerLost
/// with ranks of `world` instead of the group's: a reader of the message knows only those.
std::unique_ptr<Communicator> with_world_ranks(std::unique_ptr<Communicator> world);
/// As above, over a communicator that the caller keeps alive.
std::unique_ptr<Communicator> with_world_ranks(Communicator& world);

}  // namespace kvmesh::launch
