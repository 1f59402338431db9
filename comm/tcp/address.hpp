// Where ranks listen, and where the others find them.
#pragma once

#include <string>

#include "comm/tcp/io.hpp"

namespace kvmesh::tcp {

/// Whether `host` is a name by which other machines may know this one: not an address, and not
/// localhost.
bool is_name_for_others(asio::io_context& io, const std::string& host);

/// Where to listen to be found by those who call `host`: at the address that it spells, or at the
/// first of the name's that is not loopback. Many machines take their own name for 127.0.1.1 alone,
/// where nobody else finds them: then any address, but for localhost.
/// @throws RendezvousError if it has none.
Endpoint where_to_listen(asio::io_context& io, const std::string& host, std::uint16_t port);

/// The address for "all of mine", of the same family.
asio::ip::address any_like(const asio::ip::address& address);

/// Where to call a rank that listens, as it says, at `place`, for one that reached rank 0 at
/// `rank_0`. A loopback address means that it is on rank 0's machine.
Endpoint where_to_call(const Endpoint& place, const asio::ip::address& rank_0);

/// Returns true for addresses that the Internet does not carry: loopback, link-local, private (RFC
/// 1918) and unique local (RFC 4193) ones.
bool is_private(asio::ip::address address);

/// Throws RendezvousError if ranks without a secret may not meet at `address`.
void require_allowed(const asio::ip::address& address, const std::string& secret);

}  // namespace kvmesh::tcp
