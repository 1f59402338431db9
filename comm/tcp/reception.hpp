// The listening side: accepts connections and finds out who they are.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <string>

#include "comm/tcp/wire.hpp"

namespace kvmesh::tcp {

/// A rank of this job that has connected: its proof was right.
struct Guest {
  Socket socket;
  Claim claim{};
};

/// Accepts, and talks to any number of connections at once, so that a silent one delays no other.
/// It closes those that send something else or have another secret and, if too many are silent, the
/// oldest of these. So strangers cost a rank at most a second attempt.
class Reception {
 public:
  /// Listens at `at`; port 0: any free one. `ranks`: the number of ranks that may call at once.
  /// @throws RendezvousError if it cannot listen there.
  Reception(asio::io_context& io, const Endpoint& at, const Credentials& credentials, int ranks);
  ~Reception();
  Reception(const Reception&) = delete;
  Reception& operator=(const Reception&) = delete;

  Endpoint endpoint() const { return acceptor_.local_endpoint(); }

  /// Returns the next guest, in the order of their claims. Returns empty when the time is over.
  std::optional<Guest> next(Clock::time_point until);

  /// Counts a connection that was no guest, or none that is wanted, for strangers(). `kind`
  /// completes "2 ...".
  void note(const std::string& kind, const Socket& socket);

  /// About connections that were no guests, to end a message with: "", or " (also came: ...)".
  std::string strangers() const;

 private:
  struct Visit {
    Socket socket;
    Hello hello{};
    Challenge challenge{};
    Claim claim{};
  };
  using VisitIterator = std::list<Visit>::iterator;

  void accept();
  void accept_later(const ErrorCode& why);
  void close_oldest();
  bool may_come(const Socket& socket) const;
  void read_hello(VisitIterator visit);
  void answer(VisitIterator visit);
  void read_claim(VisitIterator visit);
  bool goes_on(const ErrorCode& error, VisitIterator visit, const char* kind_if_not);
  void turn_away(VisitIterator visit, const char* kind);

  asio::io_context* io_;
  Credentials credentials_;
  std::size_t most_visits_;
  asio::ip::tcp::acceptor acceptor_;
  asio::steady_timer pause_;
  std::list<Visit> visits_;        // connected, not known so far
  std::deque<Guest> arrived_;      // known
  std::optional<ErrorCode> news_;  // set by a handler that changed `arrived_`
  std::map<std::string, int> strangers_;
  std::string last_stranger_;
  std::string accept_error_;
};

}  // namespace kvmesh::tcp
