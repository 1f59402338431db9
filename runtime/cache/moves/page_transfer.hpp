// Copies pages of a layer group, within a rank and between ranks.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "kvmesh/allocator.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/membership.hpp"
#include "runtime/memory/attempt.hpp"
#include "runtime/memory/peer_pools.hpp"
#include "runtime/step/backend.hpp"

namespace kvmesh {

/// Makes the copies of copy on write and of moves, in every layer of a group. A copy from another
/// rank reads the page through this rank's map of the source's pools, or receives it over the kv
/// communicator. Errors of peers name `operation`. Without a stream this rank waits for its device
/// first, and all its copies are made on return. With a stream the copies within a rank are part of
/// its work; those between two ranks are made on return, after both have waited for their streams,
/// and other ranks do not wait for them. If `attempt` has failed before, this rank only takes part
/// in the exchanges, and throws that failure.
/// REQUIRES: all ranks pass the same copies; `members` are of `kv`.
/// Collective if a page is copied between ranks.
void transfer_pages(Backend& backend, const PoolStorage& pools, const PeerPools& peers,
                    Communicator& kv, const Membership& members, std::span<const PageCopy> copies,
                    std::size_t group = 0, std::string_view operation = "copy_on_write",
                    std::optional<Stream> stream = {}, Attempt attempt = {});

}  // namespace kvmesh
