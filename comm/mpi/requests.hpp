// The messages of one exchange over MPI, and the bounded wait for them.
#pragma once

#include <mpi.h>

#include <chrono>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Throws Error with MPI's own words for `code` unless it is MPI_SUCCESS.
void check_mpi(int code, std::string_view operation);

/// The sends and receives of one exchange in a group: the ranks `members` of `comm`, whose messages
/// have the tag `tag`. Keeps its arrays, so later exchanges allocate nothing. Errors name ranks of
/// the group; `waiter` is this rank. REQUIRES: `members` outlives the object.
///
/// A receive is posted only after its message has arrived with the expected length. Posting earlier
/// would save one copy of small messages, but Open MPI 4.1 writes past the buffer if a message that
/// is too long arrives by single copy.
class MpiRequests {
 public:
  MpiRequests(MPI_Comm comm, int tag, std::span<const int> members, Rank waiter,
              std::size_t chunk_bytes)
      : comm_(comm), tag_(tag), members_(members), waiter_(waiter), chunk_bytes_(chunk_bytes) {}

  void send(const Outgoing& out, std::string_view operation);
  void expect(const Incoming& in);

  /// Blocks until all messages are done, and yields the core while it waits.
  /// @throws Timeout, which names the late peers; Error if a length differs.
  void wait(std::chrono::milliseconds deadline, std::string_view operation);

  /// Gives up on the remaining messages. First waits shortly for receives that have begun, because
  /// MPI writes to their buffers until they end. A send cannot be withdrawn: MPI may read its
  /// buffer later, if the receiver still comes. So a process should end after a failed exchange.
  void abandon();

 private:
  void clear();
  bool poll(std::string_view operation);
  bool receive_if_there(Incoming& in, std::string_view operation);
  std::vector<Rank> late();

  int member(Rank rank) const { return members_[static_cast<std::size_t>(rank.value)]; }

  MPI_Comm comm_;
  int tag_;
  std::span<const int> members_;
  Rank waiter_;
  std::size_t chunk_bytes_;
  std::vector<Incoming> expected_;     // the rest of each message that has not arrived
  std::vector<MPI_Request> receives_;  // of messages that have arrived
  std::vector<Rank> receives_from_;    // [receive]
  std::vector<MPI_Request> sends_;
  std::vector<Rank> sends_to_;  // [send]
};

}  // namespace kvmesh
