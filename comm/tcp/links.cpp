#include "comm/tcp/links.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {
namespace {

// A rank that has not called may have died: nothing but a look shows that.
constexpr auto kLookEvery = std::chrono::milliseconds(20);

void throw_if(const ErrorCode& error, Rank peer, const Waiting& waiting) {
  if (!error) return;
  if (error == asio::error::timed_out) {
    throw Timeout(waiting.me, {peer}, waiting.operation, waiting.deadline);
  }
  waiting.look_at(peer);
  throw PeerLost(waiting.me, peer, waiting.operation, error.message());
}

Link call(Links& links, const Peer& peer, const Claim& claim, const Waiting& waiting) {
  asio::io_context& io = *links.io;
  Link link{Socket(io), true};
  throw_if(connect(io, link.socket, peer.at, waiting.until), peer.rank, waiting);
  const Greeting greeting = greet(io, link.socket, links.credentials, claim, waiting.until);
  throw_if(greeting.error, peer.rank, waiting);
  if (greeting.complaint.empty()) return link;
  throw RendezvousError(fmt::format("{}: {} listens where rank {} should: {}", waiting.operation,
                                    greeting.complaint, peer.rank.value, to_string(peer.at)));
}

void await_welcome(asio::io_context& io, Link& link, Rank peer, const Waiting& waiting) {
  Answer answer;
  throw_if(read(io, link.socket, asio::buffer(&answer, sizeof(answer)), waiting.until), peer,
           waiting);
  if (answer.magic == kMagic && answer.say == Say::kWelcome) return;
  throw RendezvousError(fmt::format("{}: {} is not rank {} of this group", waiting.operation,
                                    other_end(link.socket), peer.value));
}

/// Accepts the connections of all in `expected`, and closes those of any other rank.
void take_calls(Links& links, Reception& reception, std::vector<Rank> expected, std::uint64_t token,
                const Waiting& waiting) {
  while (!expected.empty()) {
    std::optional<Guest> guest = reception.next(std::min(waiting.until, Clock::now() + kLookEvery));
    if (!guest) {
      for (const Rank peer : expected) waiting.look_at(peer);
      if (Clock::now() < waiting.until) continue;
      throw Timeout(waiting.me, expected, waiting.operation + reception.strangers(),
                    waiting.deadline);
    }
    const Rank caller{static_cast<std::int32_t>(guest->claim.rank)};
    const auto known = std::find(expected.begin(), expected.end(), caller);
    if (guest->claim.token != token || known == expected.end()) continue;
    expected.erase(known);
    const Answer welcome{.say = Say::kWelcome};
    throw_if(
        write(*links.io, guest->socket, {asio::buffer(&welcome, sizeof(welcome))}, waiting.until),
        caller, waiting);
    links.peers[guest->claim.rank] = Link{std::move(guest->socket), false};
  }
}

}  // namespace

Greeting greet(asio::io_context& io, Socket& socket, const Credentials& credentials, Claim claim,
               Clock::time_point until) {
  const Hello hello{.nonce = make_nonce()};
  Challenge challenge{};
  const auto buffer = asio::buffer(&challenge, sizeof(challenge));
  constexpr std::size_t kFirst = sizeof(Challenge::magic);
  ErrorCode error = write(io, socket, {asio::buffer(&hello, sizeof(hello))}, until);
  if (!error) error = read(io, socket, asio::buffer(buffer, kFirst), until);
  if (error) return {.error = error};
  if (challenge.magic != kMagic) return {.complaint = "another program"};
  error = read(io, socket, buffer + kFirst, until);
  if (error) return {.error = error};
  if (challenge.version != kVersion) {
    return {.complaint = fmt::format("another version of kvmesh ({}, this one speaks {})",
                                     challenge.version, kVersion)};
  }
  if (!is_equal(challenge.proof,
                prove(credentials, Role::kListener, hello.nonce, challenge.nonce))) {
    return {.complaint = "a rank of another job, or with another secret,"};
  }
  claim.proof = prove(credentials, Role::kCaller, hello.nonce, challenge.nonce, words_of(claim));
  return {.error = write(io, socket, {asio::buffer(&claim, sizeof(claim))}, until)};
}

void connect_pairs(Links& links, Reception& reception, std::span<const Peer> i_call,
                   std::span<const Rank> call_me, std::uint64_t token, const Waiting& waiting) {
  // Everyone calls first and waits for answers last: no rank's answer depends on another's.
  const Claim claim{.token = token,
                    .size = static_cast<std::uint32_t>(links.peers.size()),
                    .rank = static_cast<std::uint32_t>(waiting.me.value)};
  for (const Peer& peer : i_call) {
    links.peers[static_cast<std::size_t>(peer.rank.value)] = call(links, peer, claim, waiting);
  }
  take_calls(links, reception, {call_me.begin(), call_me.end()}, token, waiting);
  for (const Peer& peer : i_call) {
    Link& link = *links.peers[static_cast<std::size_t>(peer.rank.value)];
    await_welcome(*links.io, link, peer.rank, waiting);
  }
}

std::uint64_t make_token() {
  std::random_device random;
  return std::uint64_t{random()} << 32 | random() | 1;
}

}  // namespace kvmesh::tcp
