// The listening side: everyone who connects and says Hello.
#pragma once

#include <deque>
#include <list>
#include <optional>
#include <string>

#include "comm/tcp/wire.hpp"

namespace kvmesh::tcp {

/// Someone who connected and spoke our language.
struct Guest {
  Socket socket;
  Hello hello{};
};

/// Accepts, and reads from any number of connections at once, so that one that says nothing keeps
/// nobody waiting. Those that say something else are closed.
class Reception {
 public:
  /// @throws RendezvousError if it cannot listen there. Port 0: any free one.
  Reception(asio::io_context& io, const Endpoint& at);
  ~Reception();
  Reception(const Reception&) = delete;
  Reception& operator=(const Reception&) = delete;

  Endpoint endpoint() const { return acceptor_.local_endpoint(); }

  /// The next guest, in the order of their Hellos; none if the time is over.
  std::optional<Guest> next(Clock::time_point until);

  /// About those who came but were no guests, to end a message with: empty, or " (also came: ...)".
  std::string strangers() const;

 private:
  void accept();
  void listen_to(std::list<Guest>::iterator guest);

  asio::io_context* io_;
  asio::ip::tcp::acceptor acceptor_;
  std::list<Guest> silent_;        // connected, said too little so far
  std::deque<Guest> arrived_;      // said Hello
  std::optional<ErrorCode> news_;  // set by a handler that changed `arrived_`
  int foreign_ = 0;
  std::string last_foreign_;
};

}  // namespace kvmesh::tcp
