#include "comm/tcp/links.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {
namespace {

void throw_if(const ErrorCode& error, Rank peer, const Waiting& waiting) {
  if (!error) return;
  if (error == asio::error::timed_out) {
    throw Timeout(waiting.me, {peer}, waiting.operation, waiting.deadline);
  }
  throw PeerLost(waiting.me, peer, waiting.operation, error.message());
}

Link call(asio::io_context& io, const Place& place, const Hello& hello, const Waiting& waiting) {
  Link link{Socket(io), true};
  throw_if(connect(io, link.socket, place.at, waiting.until), place.rank, waiting);
  throw_if(write(io, link.socket, {asio::buffer(&hello, sizeof(hello))}, waiting.until), place.rank,
           waiting);
  return link;
}

void await_welcome(asio::io_context& io, Link& link, Rank peer, const Waiting& waiting) {
  Answer answer;
  throw_if(read(io, link.socket, asio::buffer(&answer, sizeof(answer)), waiting.until), peer,
           waiting);
  if (answer.magic == kMagic && answer.say == Say::kWelcome) return;
  throw RendezvousError(fmt::format("{}: {} is not rank {} of this group", waiting.operation,
                                    other_end(link.socket), peer.value));
}

/// Takes the calls of all in `expected`; whoever else calls is turned away.
void take_calls(Links& links, Reception& reception, std::vector<Rank> expected, std::uint64_t token,
                const Waiting& waiting) {
  while (!expected.empty()) {
    std::optional<Guest> guest = reception.next(waiting.until);
    if (!guest) {
      throw Timeout(waiting.me, expected, waiting.operation + reception.strangers(),
                    waiting.deadline);
    }
    const Rank caller{static_cast<std::int32_t>(guest->hello.rank)};
    const auto place = std::find(expected.begin(), expected.end(), caller);
    if (guest->hello.token != token || place == expected.end()) continue;
    expected.erase(place);
    const Answer welcome{.say = Say::kWelcome};
    throw_if(
        write(*links.io, guest->socket, {asio::buffer(&welcome, sizeof(welcome))}, waiting.until),
        caller, waiting);
    links.peers[guest->hello.rank] = Link{std::move(guest->socket), false};
  }
}

}  // namespace

void connect_pairs(Links& links, Reception& reception, std::span<const Place> i_call,
                   std::span<const Rank> call_me, std::uint64_t token, const Waiting& waiting) {
  // Everyone calls first and waits for answers last: no rank's answer depends on another's.
  const Hello hello{.token = token,
                    .size = static_cast<std::uint32_t>(links.peers.size()),
                    .rank = static_cast<std::uint32_t>(waiting.me.value)};
  for (const Place& place : i_call) {
    links.peers[static_cast<std::size_t>(place.rank.value)] =
        call(*links.io, place, hello, waiting);
  }
  take_calls(links, reception, {call_me.begin(), call_me.end()}, token, waiting);
  for (const Place& place : i_call) {
    Link& link = *links.peers[static_cast<std::size_t>(place.rank.value)];
    await_welcome(*links.io, link, place.rank, waiting);
  }
}

std::uint64_t make_token() {
  std::random_device random;
  return std::uint64_t{random()} << 32 | random() | 1;
}

}  // namespace kvmesh::tcp
