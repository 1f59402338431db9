// The connections of one rank to all others of its group.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/tcp/reception.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh::tcp {

/// A connection to a peer. For a group made by split, the rank that called calls again: its peer
/// may not be able to reach it.
struct Link {
  Socket socket;
  bool called = false;  // this rank called the peer
};

struct Links {
  std::unique_ptr<asio::io_context> io;
  std::vector<std::optional<Link>> peers;  // [rank], none for this rank
  asio::ip::address listens_on;            // where this rank listens for the groups made by split
  Credentials credentials;
};

/// The operation and the deadline of a wait, for its errors.
struct Waiting {
  Rank me;
  std::string operation;
  std::chrono::milliseconds deadline;
  Clock::time_point until;
  /// Throws if it is known by other means that a rank has gone or has given up. It may be called at
  /// any time of the wait.
  std::function<void(Rank)> look_at = [](Rank) {};

  Waiting(Rank rank, std::string what, std::chrono::milliseconds how_long)
      : me(rank), operation(std::move(what)), deadline(how_long), until(Clock::now() + how_long) {}
};

struct Peer {
  Rank rank;
  Endpoint at;
};

/// The result of greet().
struct Greeting {
  ErrorCode error{};
  std::string complaint{};  // set if the listener is no rank of this job; completes "... listens"
};

/// Exchanges the proofs on a new connection, as its caller, and sends `claim` with the proof.
Greeting greet(asio::io_context& io, Socket& socket, const Credentials& credentials, Claim claim,
               Clock::time_point until);

/// Connects this rank to those that it calls and to those that call it, and puts the connections
/// into `links`. Both ends of each connection show `token`. Looks at the ranks that have not called
/// now and then, and at each rank whose connection fails (Waiting::look_at).
/// @throws Timeout, PeerLost, RendezvousError.
/// Collective.
void connect_pairs(Links& links, Reception& reception, std::span<const Peer> i_call,
                   std::span<const Rank> call_me, std::uint64_t token, const Waiting& waiting);

/// Returns a random number, which identifies a group.
std::uint64_t make_token();

}  // namespace kvmesh::tcp
