// A plain exchange over NCCL.
#pragma once

#include <span>

#include "kvmesh/nccl.hpp"

namespace kvmesh::bench {

/// Sends and receives in one NCCL group, asynchronous on the stream. May be captured.
void nccl_exchange(NcclGroup& group, std::span<const Outgoing> outgoing,
                   std::span<const Incoming> incoming, Stream stream);

}  // namespace kvmesh::bench
