// Messages under way, and the bounded wait for them.
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
/// the group; `waiter` is the caller's.
///
/// A receive is posted only when its message has come and its length is known to be right. Posting
/// ahead would save one copy of small messages, but a message that is longer than expected must not
/// be received at all: Open MPI 4.1 writes past the buffer if it comes by a single copy.
class MpiRequests {
 public:
  MpiRequests(MPI_Comm comm, int tag, std::span<const int> members, Rank waiter,
              std::size_t chunk_bytes)
      : comm_(comm), tag_(tag), members_(members), waiter_(waiter), chunk_bytes_(chunk_bytes) {}

  void send(const Outgoing& out, std::string_view operation);
  void expect(const Incoming& in);

  /// Waits until all are done. A waiting rank leaves its core to the others: see the source.
  /// @throws Timeout naming the peers that are late; Error on a length that differs.
  void wait(std::chrono::milliseconds deadline, std::string_view operation);

  /// Gives up on what is not done, after a short wait for the receives under way: until they end,
  /// MPI writes to their buffers. It cannot take back a send either: if its receiver still comes,
  /// the bytes may be read later. So a process whose exchange failed should end.
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
  std::vector<Incoming> expected_;     // what has not come yet: the rest of each message
  std::vector<MPI_Request> receives_;  // of what has come
  std::vector<Rank> receives_from_;    // [receive]
  std::vector<MPI_Request> sends_;
  std::vector<Rank> sends_to_;  // [send]
};

}  // namespace kvmesh
