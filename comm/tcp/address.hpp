// The addresses on which ranks listen, and at which the others call them.
#pragma once

#include <string>

#include "comm/tcp/io.hpp"

namespace kvmesh::tcp {

/// Returns true if `host` is a name that other machines may use for this one: no address, and not
/// localhost.
bool is_name_for_others(asio::io_context& io, const std::string& host);

/// Returns where to listen for callers of `host`: the address that it spells, or the name's first
/// address that is not loopback. Many machines resolve their own name to 127.0.1.1 alone, where no
/// other machine reaches them: for such a name (but not for localhost) it returns the address for
/// all interfaces.
/// @throws RendezvousError if `host` has no address.
Endpoint where_to_listen(asio::io_context& io, const std::string& host, std::uint16_t port);

/// Returns the address for all interfaces, of the same family.
asio::ip::address any_like(const asio::ip::address& address);

/// Returns where to call a rank that gave `place` as its address, for a caller that reached rank 0
/// at `rank_0`. A loopback address means that the rank is on rank 0's machine.
Endpoint where_to_call(const Endpoint& place, const asio::ip::address& rank_0);

/// Returns true for addresses that the Internet does not carry: loopback, link-local, private (RFC
/// 1918) and unique local (RFC 4193) ones.
bool is_private(asio::ip::address address);

/// Returns false for a public address if there is no secret.
bool is_allowed(const asio::ip::address& address, const std::string& secret);

/// Throws RendezvousError unless is_allowed.
void require_allowed(const asio::ip::address& address, const std::string& secret);

}  // namespace kvmesh::tcp
