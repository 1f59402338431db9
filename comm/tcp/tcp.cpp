// The TCP communicator: one connection per pair of ranks. A message is its length, then its bytes.
// Reads and writes of all peers are under way at once, so ranks that all send much and read late
// cannot block one another; a rank that waits sleeps in the kernel. A rank that gives up sends a
// farewell in the place of a length. It names the rank that was late, so that the ranks which wait
// for the sender name that rank, too.
#include "kvmesh/tcp.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <optional>

#include "comm/common/communicator_base.hpp"
#include "comm/common/size_mismatch.hpp"
#include "comm/common/split_members.hpp"
#include "comm/tcp/rendezvous.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

using tcp::ErrorCode;
namespace asio = tcp::asio;

/// A farewell: this number in the place of a length, then the late rank as a 64-bit number.
constexpr std::uint64_t kFarewell = ~std::uint64_t{0};

/// Returns the rank that the current exception names as late or lost. Returns empty if it names
/// none.
std::optional<Rank> to_blame() {
  try {
    throw;
  } catch (const Timeout& error) {
    if (!error.late().empty()) return error.late().front();
  } catch (const PeerLost& error) {
    return error.peer();
  } catch (...) {
  }
  return std::nullopt;
}

/// Returns the number of `rank` among `members`.
Rank place_in(const std::vector<Rank>& members, Rank rank) {
  return Rank{static_cast<std::int32_t>(std::ranges::find(members, rank) - members.begin())};
}

/// Returns `links` with the peers of `members` alone, in their order.
tcp::Links links_of(const std::vector<Rank>& members, tcp::Links links) {
  std::vector<std::optional<tcp::Link>> peers;
  for (const Rank member : members) {
    peers.push_back(std::move(links.peers[static_cast<std::size_t>(member.value)]));
  }
  links.peers = std::move(peers);
  return links;
}

/// The state of an exchange with one peer.
struct Lane {
  std::uint64_t sent_length = 0;
  std::uint64_t received_length = 0;
  std::span<std::byte> into;
  bool is_sending = false;
  bool is_receiving = false;
};

class TcpCommunicator final : public CommunicatorBase {
 public:
  TcpCommunicator(tcp::Links links, Rank rank, std::chrono::milliseconds deadline)
      : CommunicatorBase(rank, static_cast<int>(links.peers.size()), deadline),
        links_(std::move(links)),
        lanes_(links_.peers.size()) {}

  std::string_view kind() const override { return "tcp"; }

 private:
  void exchange_with_others(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                            std::string_view operation) override {
    operation_ = operation;
    for (const Incoming& in : incoming) receive(in);
    for (const Outgoing& out : outgoing) send(out);
    links_.io->restart();
    links_.io->run_until(tcp::Clock::now() + deadline());
    if (const std::vector<Rank> ranks = late(); !ranks.empty()) {
      throw Timeout(rank(), ranks, std::string(operation), deadline());
    }
  }

  tcp::Socket& socket(Rank peer) {
    return links_.peers[static_cast<std::size_t>(peer.value)]->socket;
  }
  Lane& lane(Rank peer) { return lanes_[static_cast<std::size_t>(peer.value)]; }

  void send(const Outgoing& out) {
    if (out.to == rank() || out.bytes.empty()) return;
    Lane& mine = lane(out.to);
    mine.sent_length = out.bytes.size();
    mine.is_sending = true;
    const std::array<asio::const_buffer, 2> message{
        asio::buffer(&mine.sent_length, sizeof(mine.sent_length)),
        asio::buffer(out.bytes.data(), out.bytes.size())};
    asio::async_write(socket(out.to), message,
                      [this, peer = out.to](const ErrorCode& error, std::size_t) {
                        if (went_well(error, peer)) lane(peer).is_sending = false;
                      });
  }

  void receive(const Incoming& in) {
    if (in.from == rank() || in.bytes.empty()) return;
    Lane& mine = lane(in.from);
    mine.into = in.bytes;
    mine.is_receiving = true;
    asio::async_read(socket(in.from),
                     asio::buffer(&mine.received_length, sizeof(mine.received_length)),
                     [this, peer = in.from](const ErrorCode& error, std::size_t) {
                       if (went_well(error, peer)) receive_body(peer);
                     });
  }

  void receive_body(Rank peer) {
    Lane& mine = lane(peer);
    if (mine.received_length == kFarewell) return receive_farewell(peer);
    if (mine.received_length != mine.into.size()) {
      throw SizeMismatch({std::string(operation_), rank(), mine.into.size(), peer,
                          static_cast<std::size_t>(mine.received_length)});
    }
    asio::async_read(socket(peer), asio::buffer(mine.into.data(), mine.into.size()),
                     [this, peer](const ErrorCode& error, std::size_t) {
                       if (went_well(error, peer)) lane(peer).is_receiving = false;
                     });
  }

  void receive_farewell(Rank peer) {
    Lane& mine = lane(peer);
    asio::async_read(socket(peer),
                     asio::buffer(&mine.received_length, sizeof(mine.received_length)),
                     [this, peer](const ErrorCode& error, std::size_t) {
                       if (!went_well(error, peer)) return;
                       throw_what_is_reported(peer, lane(peer).received_length);
                     });
  }

  [[noreturn]] void throw_what_is_reported(Rank peer, std::uint64_t blamed) const {
    if (blamed >= static_cast<std::uint64_t>(size())) {
      throw PeerLost(rank(), peer, std::string(operation_), "it gave up");
    }
    throw Timeout(rank(), {Rank{static_cast<std::int32_t>(blamed)}},
                  fmt::format("{} (as another rank reports)", operation_), deadline());
  }

  /// Throws if `peer` has closed its connection or sent a farewell. Takes nothing out of the
  /// connection: a peer that is ahead may have sent its next message.
  /// REQUIRES: no exchange is under way.
  void look_at(Rank peer) {
    std::array<std::uint64_t, 2> farewell{};
    ErrorCode error;
    socket(peer).non_blocking(true, error);
    const std::size_t bytes =
        socket(peer).receive(asio::buffer(farewell), tcp::Socket::message_peek, error);
    if (error == asio::error::would_block) return;
    if (error) throw PeerLost(rank(), peer, std::string(operation_), error.message());
    if (bytes == sizeof(farewell) && farewell[0] == kFarewell) {
      throw_what_is_reported(peer, farewell[1]);
    }
  }

  /// Handlers may throw: run_until passes the exception on. After a failure the remaining handlers
  /// return at once.
  bool went_well(const ErrorCode& error, Rank peer) const {
    if (is_broken()) return false;
    if (!error) return true;
    throw PeerLost(rank(), peer, std::string(operation_), error.message());
  }

  std::vector<Rank> late() const {
    std::vector<Rank> ranks;
    for (std::size_t r = 0; r < lanes_.size(); ++r) {
      if (lanes_[r].is_sending || lanes_[r].is_receiving) {
        ranks.push_back(Rank{static_cast<std::int32_t>(r)});
      }
    }
    return ranks;
  }

  /// Closes all connections. Then no operation uses the caller's buffers any more, and the peers'
  /// waits end.
  void break_off(std::span<const Outgoing>) override {
    const std::optional<Rank> blamed = to_blame();
    ErrorCode ignored;
    for (std::size_t r = 0; r < links_.peers.size(); ++r) {
      auto& link = links_.peers[r];
      if (!link) continue;
      if (blamed && !lanes_[r].is_sending) say_farewell(link->socket, *blamed);
      link->socket.close(ignored);
    }
    links_.io->restart();
    links_.io->run();
  }

  /// Sends without waiting: what the socket does not take at once is lost.
  static void say_farewell(tcp::Socket& socket, Rank blamed) {
    const std::array<std::uint64_t, 2> farewell{kFarewell,
                                                static_cast<std::uint64_t>(blamed.value)};
    ErrorCode ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(farewell), ignored);
  }

  /// The place where a rank can be called for a new group.
  struct Door {
    std::uint64_t token;
    std::uint64_t port;
  };
  /// The ranks of a new group that this rank calls, and those that call it.
  struct Calls {
    std::vector<tcp::Peer> i_call;
    std::vector<Rank> call_me;
  };
  std::unique_ptr<Communicator> make_part(int color, int key) override;
  Calls calls_among(std::span<const Rank> members, std::span<const Door> doors) const;

  tcp::Links links_;
  std::vector<Lane> lanes_;     // [rank]
  std::string_view operation_;  // of the exchange under way
};

/// The new group has its own connections, so it can be used after this one breaks, and the other
/// way round. The rank that called its peer for this group calls it again, at the same address.
/// While they connect, all ranks are ranks of this group, as in errors and in farewells, and this
/// group's connections show which of them have gone.
std::unique_ptr<Communicator> TcpCommunicator::make_part(int color, int key) {
  const std::vector<Rank> members = split_members(*this, color, key);
  tcp::Links links;
  links.io = std::make_unique<asio::io_context>(1);
  links.peers.resize(links_.peers.size());
  links.listens_on = links_.listens_on;
  links.credentials = links_.credentials;
  std::optional<tcp::Reception> reception;
  if (members.size() > 1) {
    reception.emplace(*links.io, tcp::Endpoint(links_.listens_on, 0), links.credentials,
                      static_cast<int>(members.size()));
  }

  const Door mine{tcp::make_token(), reception ? reception->endpoint().port() : std::uint64_t{0}};
  const std::vector<Door> doors = all_gather_value(*this, mine, "split");

  if (reception) {
    const Calls calls = calls_among(members, doors);
    const std::uint64_t token = doors[static_cast<std::size_t>(members.front().value)].token;
    tcp::Waiting waiting(rank(), "split", deadline());
    waiting.look_at = [this](Rank peer) { look_at(peer); };
    try {
      connect_pairs(links, *reception, calls.i_call, calls.call_me, token, waiting);
    } catch (...) {
      fail({});  // before the new connections end, so that the members find the farewell
      throw;
    }
  }
  return std::make_unique<TcpCommunicator>(links_of(members, std::move(links)),
                                           place_in(members, rank()), deadline());
}

TcpCommunicator::Calls TcpCommunicator::calls_among(std::span<const Rank> members,
                                                    std::span<const Door> doors) const {
  Calls calls;
  for (const Rank member : members) {
    if (member == rank()) continue;
    const auto r = static_cast<std::size_t>(member.value);
    const tcp::Link& link = *links_.peers[r];
    if (link.called) {
      ErrorCode gone;
      const auto address = link.socket.remote_endpoint(gone).address();
      if (gone) throw PeerLost(rank(), member, "split", gone.message());
      calls.i_call.push_back({member, {address, static_cast<std::uint16_t>(doors[r].port)}});
    } else {
      calls.call_me.push_back(member);
    }
  }
  return calls;
}

}  // namespace

std::unique_ptr<Communicator> make_tcp_communicator(const TcpOptions& options) {
  require(options.size > 0 && options.size <= PageId::kMaxRanks,
          "make_tcp_communicator: {} ranks, want 1 to {}", options.size, PageId::kMaxRanks);
  require(options.rank >= 0 && options.rank < options.size,
          "make_tcp_communicator: rank {} of {} ranks", options.rank, options.size);
  require(options.size == 1 || (options.port != 0 && !options.host.empty()),
          "make_tcp_communicator: no host or port for {} ranks to meet at", options.size);
  require(options.deadline.count() > 0, "make_tcp_communicator: a deadline of {} ms",
          options.deadline.count());
  TcpOptions bounded = options;
  bounded.deadline = checked_deadline(options.deadline);
  tcp::Links links;
  if (options.size > 1) {
    links = tcp::rendezvous(bounded);
  } else {
    links.io = std::make_unique<asio::io_context>(1);
    links.peers.resize(1);
  }
  return std::make_unique<TcpCommunicator>(std::move(links), Rank{options.rank}, options.deadline);
}

}  // namespace kvmesh
