// Errors that name the ranks of the job, whatever group they were in.
#pragma once

#include <memory>

#include "kvmesh/communicator.hpp"

namespace kvmesh::launch {

/// `world`, whose groups (Communicator::split) throw Timeout and PeerLost with the ranks that their
/// members have in `world`: who reads an error knows the job's ranks, and no group's.
std::unique_ptr<Communicator> with_world_ranks(std::unique_ptr<Communicator> world);
/// The same over one that the caller keeps alive.
std::unique_ptr<Communicator> with_world_ranks(Communicator& world);

}  // namespace kvmesh::launch
