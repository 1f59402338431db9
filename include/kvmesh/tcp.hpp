// Ranks that connect over TCP: for engines that start their workers themselves, without MPI.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "kvmesh/api.h"
#include "kvmesh/communicator.hpp"

namespace KVMESH_API kvmesh {

/// The options of a rank. REQUIRES: all ranks of a job pass the same size, host and port, and each
/// its own rank.
struct TcpOptions {
  int rank = 0;
  int size = 1;
  /// The name or address (IPv4 or IPv6) on which rank 0 listens, and to which the other ranks
  /// connect.
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;
  /// Limit for the whole rendezvous, and afterwards the communicator's first deadline.
  std::chrono::milliseconds deadline = std::chrono::seconds(60);
  /// Address or name to listen on; 0.0.0.0 or :: for all interfaces. Empty: rank 0 uses `host`, the
  /// other ranks the local address of their connection to rank 0. If that is a loopback address
  /// although `host` is a name that other machines may use (Debian maps a machine's own name to
  /// 127.0.1.1), the rank listens on all interfaces. It does not if `host` is an address or
  /// localhost.
  std::string address{};
  /// A secret of the job: ranks accept only peers that prove that they have the same one, and send
  /// nothing to others. Without a secret all addresses must be loopback or private ones.
  std::string secret{};
  /// The job's id: ranks of a job with another one are strangers.
  std::string job{};
};

/// Reads the options from the environment, as make_launched_communicator does:
///
///   KVMESH_RANK=0  KVMESH_SIZE=2  KVMESH_RENDEZVOUS=host:port   (an IPv6 address in brackets)
///   KVMESH_ADDRESS=10.0.0.5                                     (TcpOptions::address; optional)
///   KVMESH_SECRET=...  or  KVMESH_SECRET_FILE=path              (TcpOptions::secret; optional)
///   KVMESH_JOB=...                                              (TcpOptions::job; optional)
///
/// or, where the first three are not set, the variables of torchrun or Slurm (see launcher.hpp;
/// docs/launching.md has them all). Returns empty if the ranks do not meet by TCP.
/// @throws InvalidArgument, which names the variable that is missing or invalid.
std::optional<TcpOptions> tcp_options_from_environment();

/// The ranks cannot form a group: rank 0 refuses this rank (its number is taken, or its job has
/// another size), this rank cannot listen on its address, or an address is public and there is no
/// secret. Also: the launcher has started more ranks than would meet (launcher.hpp).
class RendezvousError : public Error {
 public:
  using Error::Error;
  ErrorCode code() const noexcept override { return ErrorCode::kRendezvous; }
};

/// Connects the ranks of a job. Rank 0 listens, the other ranks register with it (they retry until
/// it listens) and receive all addresses from it, and every pair connects. Ranks may start in any
/// order. A rank, also rank 0, that ends before all have come may be started again.
///
/// Both sides of every connection prove that they have the job's secret and id before they say
/// anything else. Rank 0 closes other connections and goes on; it refuses a rank that does not fit,
/// and goes on. Without a secret (docs/launching.md), ranks accept only loopback and private
/// addresses, and the process that comes first with a free rank is that rank. Nothing is encrypted.
/// The lookup of a host name takes as long as the system's resolver takes; all other waits end at
/// the deadline.
///
/// The communicator throws `Timeout` as all do, and `PeerLost` if a peer's connection ends. After
/// an error it closes its connections, so that peers which wait for it fail at once: with a
/// `Timeout` that names the rank it waited for, if it gave up on one. Groups made by `split` have
/// their own connections and continue.
/// @throws InvalidArgument; RendezvousError; Timeout, which names the missing ranks (up to 32) and
/// counts the connections that were turned away; PeerLost if a rank disconnected when all had come.
/// Collective.
std::unique_ptr<Communicator> make_tcp_communicator(const TcpOptions& options);

}  // namespace kvmesh
