// Ranks that find one another by TCP: for engines that start their workers themselves, without MPI.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// What every rank of a job gives: the same size, host and port, and its own rank.
struct TcpOptions {
  int rank = 0;
  int size = 1;
  /// Where rank 0 listens and the others find it: a name or an address, IPv4 or IPv6.
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  /// For the whole meeting; then the communicator's first deadline.
  std::chrono::milliseconds deadline = std::chrono::seconds(60);
  /// Where this rank listens for the others: an address or a name; 0.0.0.0 or :: for all of its
  /// own. Empty: rank 0 on `host`, the others on the address from which they reach rank 0. If that
  /// is a loopback address, though `host` is a name other than localhost (a machine may take its
  /// own name for 127.0.1.1), then on all of its own. For an address or localhost as `host` never.
  std::string address{};
};

/// What whoever started this process says in its environment, as for Mesh::from_launcher:
///
///   KVMESH_RANK=0  KVMESH_SIZE=2  KVMESH_RENDEZVOUS=host:port   (an IPv6 address in brackets)
///   KVMESH_ADDRESS=10.0.0.5                                     (TcpOptions::address; may be left)
///
/// Nothing if none of the first three is set. @throws InvalidArgument if one is missing or wrong.
///
/// Mesh::from_launcher reads two more, for jobs on several machines: KVMESH_LOCAL_RANK, the rank's
/// place among those of its machine, and KVMESH_LOCAL_SIZE, how many these are. The rank takes the
/// GPU with the number of its place modulo the machine's GPUs, and one share of so many of its
/// cores. Without them all ranks count as on one machine.
std::optional<TcpOptions> tcp_options_from_environment();

/// The ranks cannot become one group: two have the same rank, or sizes or versions differ, or
/// something else than kvmesh is on the port, or this rank cannot listen where it should.
class RendezvousError : public Error {
 public:
  using Error::Error;
};

/// Collective: rank 0 listens, the others introduce themselves to it (retrying until it listens),
/// learn from it where everyone is, and all pairs connect. Ranks may start in any order.
///
/// Strangers on rank 0's port are turned away and the meeting goes on. Nothing is encrypted and the
/// ranks do not prove who they are: use it on a network that is yours. Looking up a host name takes
/// as long as the system's resolver takes; all other waits end with the deadline.
///
/// The communicator's own errors: `Timeout` as everywhere, `PeerLost` if a peer's connection ends.
/// After an error it closes its connections, so the peers that wait for it notice at once; groups
/// made by `split` have connections of their own and go on.
/// @throws InvalidArgument; RendezvousError; Timeout, which names the ranks that did not come (up
/// to 32); PeerLost if one came and went.
std::unique_ptr<Communicator> make_tcp_communicator(const TcpOptions& options);

}  // namespace kvmesh
