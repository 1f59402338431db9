// Messages under way, and the bounded wait for them.
#pragma once

#include <mpi.h>

#include <chrono>
#include <string_view>
#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Throws Error with MPI's own words for `code` unless it is MPI_SUCCESS.
void check_mpi(int code, std::string_view operation);

/// The sends and receives of one exchange. Keeps its arrays, so later exchanges allocate nothing.
/// All errors name `waiter`, the rank that it works for.
class MpiRequests {
 public:
  MpiRequests(MPI_Comm comm, Rank waiter, std::size_t chunk_bytes)
      : comm_(comm), waiter_(waiter), chunk_bytes_(chunk_bytes) {}

  void receive(const Incoming& in, std::string_view operation);
  void send(const Outgoing& out, std::string_view operation);

  /// Waits until all are done. A waiting rank leaves its core to the others: see the source.
  /// @throws Timeout naming the peers whose messages are missing; Error on a length that differs.
  void wait(std::chrono::milliseconds deadline, std::string_view operation);

  /// Gives up on what is not done. MPI cannot take back a send: if its receiver still comes, the
  /// bytes may be read later, so a process that timed out should end.
  void abandon();

 private:
  struct Message {
    Rank peer;
    int bytes = 0;
    bool incoming = false;
  };

  std::vector<Rank> not_done();
  void check_lengths(int code, std::string_view operation);

  MPI_Comm comm_;
  Rank waiter_;
  std::size_t chunk_bytes_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<Message> messages_;
};

}  // namespace kvmesh
