// Machines that take their own name for a loopback address, as Debian's do: the others find their
// ranks all the same. getaddrinfo is the test's own here, so that a name can have any address.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>

#include <map>
#include <string_view>

#include "comm/tcp/address.hpp"
#include "tests/comm/tcp/ranks.hpp"

namespace {

using Names = std::map<std::string, std::vector<std::string>, std::less<>>;

/// Each thread may be on another machine.
thread_local Names names;

}  // namespace

extern "C" int getaddrinfo(const char* node, const char* service, const addrinfo* hints,
                           addrinfo** result) {
  using Function = int (*)(const char*, const char*, const addrinfo*, addrinfo**);
  static const auto real = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, "getaddrinfo"));
  const auto known = names.find(std::string_view(node ? node : ""));
  const bool wants_a_name = !hints || (hints->ai_flags & AI_NUMERICHOST) == 0;
  if (known == names.end() || !wants_a_name) return real(node, service, hints, result);
  addrinfo** end = result;
  for (const std::string& address : known->second) {
    if (const int error = real(address.c_str(), service, hints, end)) return error;
    while (*end) end = &(*end)->ai_next;
  }
  return 0;
}

namespace kvmesh::test {
namespace {

tcp::Endpoint endpoint(const char* address, std::uint16_t port) {
  return {tcp::asio::ip::make_address(address), port};
}

/// An IPv4 address by which other machines might call this one; empty if it has none.
std::string outer_address() {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(all, ::freeifaddrs);
  for (const ifaddrs* one = all; one; one = one->ifa_next) {
    const bool usable = (one->ifa_flags & IFF_UP) != 0 && (one->ifa_flags & IFF_LOOPBACK) == 0;
    if (!usable || !one->ifa_addr || one->ifa_addr->sa_family != AF_INET) continue;
    const auto* address = reinterpret_cast<const sockaddr_in*>(one->ifa_addr);
    return tcp::asio::ip::address_v4(ntohl(address->sin_addr.s_addr)).to_string();
  }
  return {};
}

TEST(TcpAddress, ListensWhereANameIsCalledFromOutside) {
  tcp::asio::io_context io;
  const Names before = std::exchange(names, {{"node-a", {"127.0.1.1"}},
                                             {"node-b", {"127.0.1.1", "192.0.2.7"}},
                                             {"node-c", {"::1", "127.0.1.1"}},
                                             {"node-d", {"192.0.2.7", "192.0.2.8"}}});
  EXPECT_EQ(tcp::where_to_listen(io, "node-a", 7), endpoint("0.0.0.0", 7));
  EXPECT_EQ(tcp::where_to_listen(io, "node-b", 7), endpoint("192.0.2.7", 7));
  EXPECT_EQ(tcp::where_to_listen(io, "node-c", 7), endpoint("::", 7));
  EXPECT_EQ(tcp::where_to_listen(io, "node-d", 7), endpoint("192.0.2.7", 7));
  EXPECT_EQ(tcp::where_to_listen(io, "0.0.0.0", 7), endpoint("0.0.0.0", 7));
  names = before;
}

TEST(TcpAddress, StaysOnLoopbackIfRequested) {
  tcp::asio::io_context io;
  const Names before = std::exchange(names, {{"localhost", {"127.0.0.1"}},
                                             {"LocalHost.localdomain", {"127.0.0.1"}},
                                             {"ip6-loopback", {"::1"}}});
  for (const char* host : {"localhost", "LocalHost.localdomain", "ip6-loopback", "127.0.0.1",
                           "127.0.1.1", "127.1", "::1"}) {
    const tcp::Endpoint at = tcp::where_to_listen(io, host, 7);
    EXPECT_TRUE(at.address().is_loopback()) << host << ": " << at;
    EXPECT_EQ(at.port(), 7);
  }
  names = before;
}

TEST(TcpAddress, CallsRanksOfRankZerosMachineAtItsAddress) {
  const auto call = [](const char* place, const char* rank_0) {
    return tcp::where_to_call(endpoint(place, 9), tcp::asio::ip::make_address(rank_0));
  };
  EXPECT_EQ(call("127.0.0.1", "192.0.2.7"), endpoint("192.0.2.7", 9));
  EXPECT_EQ(call("127.0.0.1", "127.0.1.1"), endpoint("127.0.0.1", 9));
  EXPECT_EQ(call("192.0.2.8", "192.0.2.7"), endpoint("192.0.2.8", 9));
  EXPECT_EQ(call("192.0.2.8", "127.0.1.1"), endpoint("192.0.2.8", 9));
}

TEST(TcpAddress, ClassifiesPrivateAddresses) {
  const auto is_private = [](const char* text) {
    return tcp::is_private(tcp::asio::ip::make_address(text));
  };
  for (const char* text :
       {"127.0.0.1", "127.9.9.9", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
        "192.168.0.1", "169.254.1.1", "::1", "fe80::1", "fc00::1", "fdff::1", "::ffff:10.0.0.1"}) {
    EXPECT_TRUE(is_private(text)) << text;
  }
  for (const char* text : {"0.0.0.0", "9.255.255.255", "11.0.0.1", "172.15.255.255", "172.32.0.1",
                           "192.167.1.1", "192.169.1.1", "169.253.1.1", "8.8.8.8",
                           "::", "2001:db8::1", "fec0::1", "fe00::1", "::ffff:8.8.8.8"}) {
    EXPECT_FALSE(is_private(text)) << text;
  }
}

TEST(TcpAddress, PublicAddressesNeedASecret) {
  for (const int rank : {0, 1}) {
    for (const char* host : {"192.0.2.123", "2001:db8::1"}) {
      TcpOptions options = tcp_options(rank, 2, free_port());
      options.host = host;
      try {
        make_tcp_communicator(options);
        FAIL() << "rank " << rank;
      } catch (const RendezvousError& error) {
        EXPECT_NE(std::string(error.what()).find("is not a private address"), std::string::npos)
            << error.what();
        EXPECT_NE(std::string(error.what()).find("KVMESH_SECRET"), std::string::npos);
      }
    }
  }
}

void meet_and_split(Communicator& comm) {
  barrier(comm);
  const std::unique_ptr<Communicator> part = comm.split(comm.rank().value % 2, 0);
  barrier(*part);
  barrier(*comm.split(0, -comm.rank().value));
}

/// Ranks 0 and 1 are on node-a, which takes its name for 127.0.1.1; ranks 2 and 3 are elsewhere.
TEST(TcpAddress, OtherMachinesReachANameThatIsLoopbackAtHome) {
  const std::string outer = outer_address();
  if (outer.empty()) GTEST_SKIP() << "no address but loopback";
  TcpRanks<4>::run(meet_and_split, [&](int rank, std::uint16_t port) {
    names = {{"node-a", {rank < 2 ? "127.0.1.1" : outer}}};
    TcpOptions options = tcp_options(rank, 4, port);
    options.host = "node-a";
    options.secret = "the outer address may be public";
    return options;
  });
}

TEST(TcpAddress, RanksListenAtTheGivenAddress) {
  TcpRanks<3>::run(meet_and_split, [](int rank, std::uint16_t port) {
    TcpOptions options = tcp_options(rank, 3, port);
    options.address = rank == 1 ? "127.0.0.3" : "0.0.0.0";
    return options;
  });
}

TEST(TcpAddress, NamesAnAddressOfAnotherMachine) {
  TcpOptions options = tcp_options(0, 2, free_port());
  options.address = "192.0.2.123";  // reserved for documentation: no machine has it
  options.secret = "public";
  try {
    make_tcp_communicator(options);
    FAIL() << "it listens";
  } catch (const RendezvousError& error) {
    EXPECT_NE(std::string(error.what()).find("cannot listen on 192.0.2.123"), std::string::npos);
  }
}

}  // namespace
}  // namespace kvmesh::test
