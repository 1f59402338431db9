// How ranks that know only rank 0's address become a group.
//
//   rank r                              rank 0
//     Hello, Challenge, Claim (wire.hpp): both prove the job's secret, rank r says who it is and
//                                         where it listens
//                                     <-  kWaiting: who is missing (at once, then now and then)
//                                     <-  kTable: a token, and where everyone listens
//   then each rank calls those below it in the same way, and this first connection becomes the one
//   to rank 0.
#pragma once

#include "comm/tcp/links.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {

/// Collective: see make_tcp_communicator. REQUIRES: checked options, more than one rank.
Links rendezvous(const TcpOptions& options);

}  // namespace kvmesh::tcp
