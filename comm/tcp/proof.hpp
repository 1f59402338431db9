// How two ranks prove to one another that they belong to one job.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kvmesh::tcp {

/// The job's name and secret, equal on all of its ranks. Both may be empty.
struct Credentials {
  std::string secret;
  std::string job;
};

/// A random number that is used once, so that a proof cannot be used again.
using Nonce = std::array<std::uint8_t, 32>;
/// HMAC-SHA256 (RFC 2104), with the secret as its key.
using Proof = std::array<std::uint8_t, 32>;

Nonce make_nonce();

enum class Role { kCaller, kListener };

/// Proves to the peer that drew the other nonce that the rank in `role` has `credentials` and sends
/// `words`. The roles' proofs differ, so neither can be sent back.
Proof prove(const Credentials& credentials, Role role, const Nonce& caller, const Nonce& listener,
            std::span<const std::byte> words = {});

/// Compares in a time that does not depend on where the proofs differ.
bool is_equal(const Proof& one, const Proof& other);

}  // namespace kvmesh::tcp
