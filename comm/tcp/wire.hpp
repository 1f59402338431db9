// The messages that ranks exchange while they connect. Numbers are in the host's byte order: a host
// of the other order shows another magic.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "comm/tcp/io.hpp"
#include "comm/tcp/proof.hpp"

namespace kvmesh::tcp {

inline constexpr std::uint64_t kMagic = 0x31'68'73'65'6D'76'6B'89;  // 0x89 "kvmesh1"
inline constexpr std::uint32_t kVersion = 3;

/// The address at which a rank listens: IPv6, or IPv4 mapped into it.
struct Address {
  std::array<std::uint8_t, 16> bytes{};
  std::uint32_t port = 0;
};

// A connection begins with three messages. They reveal nothing of the job before its secret
// is proved.
//
//   caller                                 listener
//     Hello: a nonce                     ->
//                                        <-  Challenge: a nonce, and the listener's proof
//     Claim: who I am, caller's proof    ->

/// The magic and the version come first in all versions.
struct Hello {
  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t zero = 0;
  Nonce nonce{};
};

struct Challenge {
  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t zero = 0;
  Nonce nonce{};
  Proof proof{};
};

struct Claim {
  std::uint64_t token = 0;  // of the group that is being connected; 0 at the rendezvous
  std::uint32_t size = 0;
  std::uint32_t rank = 0;  // for a group that split makes: in the group that is split
  Address listens{};
  std::uint32_t zero = 0;
  Proof proof{};  // also of the members above
};

inline std::span<const std::byte> words_of(const Claim& claim) {
  return std::as_bytes(std::span(&claim, 1)).first(offsetof(Claim, proof));
}

/// The messages of the listening rank, any number of them.
enum class Say : std::uint32_t {
  kWelcome,  ///< Between two ranks: connected.
  kWaiting,  ///< Rank 0: not all are here; the ranks that are missing (the first of them) follow.
  kTable,    ///< Rank 0: all are here; the token and everyone's address follow.
  kLate,     ///< Rank 0 gives up; the missing ranks follow.
  kRefused,  ///< Rank 0 does not take this rank, or gives up; the reason follows as text.
};
struct Answer {
  std::uint64_t magic = kMagic;
  Say say{};
  std::uint32_t bytes = 0;  // that follow
};

// They travel as they lie in memory, so nothing may be left unsaid between members.
static_assert(std::has_unique_object_representations_v<Hello>);
static_assert(std::has_unique_object_representations_v<Challenge>);
static_assert(std::has_unique_object_representations_v<Claim>);
static_assert(std::has_unique_object_representations_v<Answer>);

inline Address address_of(const Endpoint& endpoint) {
  const auto& ip = endpoint.address();
  const auto v6 =
      ip.is_v6() ? ip.to_v6() : asio::ip::make_address_v6(asio::ip::v4_mapped, ip.to_v4());
  return {v6.to_bytes(), endpoint.port()};
}

inline Endpoint endpoint_of(const Address& address) {
  const asio::ip::address_v6 v6(address.bytes);
  const auto port = static_cast<std::uint16_t>(address.port);
  if (v6.is_v4_mapped()) return {asio::ip::make_address_v4(asio::ip::v4_mapped, v6), port};
  return {v6, port};
}

}  // namespace kvmesh::tcp
