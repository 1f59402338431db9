#include "comm/tcp/address.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/algorithm/string/predicate.hpp>

#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {

bool is_name_for_others(asio::io_context& io, const std::string& host) {
  using Resolver = asio::ip::tcp::resolver;
  ErrorCode is_no_address;
  Resolver(io).resolve(host, "", Resolver::numeric_host, is_no_address);
  // localhost, localhost.localdomain, localhost6; Debian's ip6-localhost and ip6-loopback.
  return is_no_address && !boost::istarts_with(host, "localhost") &&
         !boost::istarts_with(host, "ip6-lo");
}

Endpoint where_to_listen(asio::io_context& io, const std::string& host, std::uint16_t port) {
  ErrorCode error;
  const std::vector<Endpoint> all = resolve(io, host, port, error);
  if (all.empty()) {
    throw RendezvousError(fmt::format("cannot listen on {}: {}", host, error.message()));
  }
  if (!is_name_for_others(io, host)) return all.front();
  const auto outer =
      std::ranges::find_if(all, [](const Endpoint& at) { return !at.address().is_loopback(); });
  return outer != all.end() ? *outer : Endpoint(any_like(all.front().address()), port);
}

asio::ip::address any_like(const asio::ip::address& address) {
  if (address.is_v6()) return asio::ip::address_v6::any();
  return asio::ip::address_v4::any();
}

Endpoint where_to_call(const Endpoint& place, const asio::ip::address& rank_0) {
  if (!place.address().is_loopback() || rank_0.is_loopback()) return place;
  return {rank_0, place.port()};
}

bool is_private(asio::ip::address address) {
  if (address.is_v6() && address.to_v6().is_v4_mapped()) {
    address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
  }
  if (address.is_loopback()) return true;
  if (address.is_v6()) {
    return address.to_v6().is_link_local() || (address.to_v6().to_bytes()[0] & 0xFE) == 0xFC;
  }
  const std::uint32_t ip = address.to_v4().to_uint();
  return ip >> 24 == 10 || ip >> 20 == 0xAC1 || ip >> 16 == 0xC0A8 || ip >> 16 == 0xA9FE;
}

bool is_allowed(const asio::ip::address& address, const std::string& secret) {
  return !secret.empty() || address.is_unspecified() || is_private(address);
}

void require_allowed(const asio::ip::address& address, const std::string& secret) {
  if (is_allowed(address, secret)) return;
  throw RendezvousError(
      fmt::format("{} is not a private address: set KVMESH_SECRET to the same secret on all ranks, "
                  "or let them meet at a private address",
                  address.to_string()));
}

}  // namespace kvmesh::tcp
