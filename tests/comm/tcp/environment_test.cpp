// What a launcher other than mpirun may say, and say wrong.
#include <gtest/gtest.h>

#include "kvmesh/tcp.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh::test {
namespace {

/// The three variables, set for one call; null: not set.
std::optional<TcpOptions> options_of(const char* rank, const char* size, const char* rendezvous) {
  const Variable first("KVMESH_RANK", rank), second("KVMESH_SIZE", size),
      third("KVMESH_RENDEZVOUS", rendezvous);
  return tcp_options_from_environment();
}

TEST(TcpEnvironment, SaysWhereToMeet) {
  EXPECT_FALSE(options_of(nullptr, nullptr, nullptr));
  const auto named = options_of("1", "4", "node-7.cluster:29500");
  ASSERT_TRUE(named);
  EXPECT_EQ(named->rank, 1);
  EXPECT_EQ(named->size, 4);
  EXPECT_EQ(named->host, "node-7.cluster");
  EXPECT_EQ(named->port, 29500);
  EXPECT_TRUE(named->address.empty());
  const auto v6 = options_of("0", "1", "[fe80::1]:65535");
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->host, "fe80::1");
  EXPECT_EQ(v6->port, 65535);
}

TEST(TcpEnvironment, SaysWhereThisRankListens) {
  const Variable address("KVMESH_ADDRESS", "10.0.0.5");
  EXPECT_FALSE(options_of(nullptr, nullptr, nullptr));
  EXPECT_EQ(options_of("1", "4", "node-7:29500")->address, "10.0.0.5");
}

TEST(TcpEnvironment, WhatIsWrongIsNamed) {
  struct Case {
    const char *rank, *size, *rendezvous, *says;
  };
  for (const Case& wrong :
       {Case{nullptr, "2", "a:1", "no KVMESH_RANK"},
        Case{"0", nullptr, nullptr, "no KVMESH_SIZE KVMESH_RENDEZVOUS"},
        Case{"0", "", "a:1", "no KVMESH_SIZE"}, Case{"zero", "2", "a:1", "KVMESH_RANK is 'zero'"},
        Case{"0", "2 ", "a:1", "KVMESH_SIZE is '2 '"}, Case{"2", "2", "a:1", "ranks are 0 to 1"},
        Case{"-1", "2", "a:1", "ranks are 0 to 1"}, Case{"0", "2", "a", "not host:port"},
        Case{"0", "2", "a:", "not host:port"}, Case{"0", "2", ":1", "not host:port"},
        Case{"0", "2", "a:65536", "'65536'"}, Case{"0", "2", "::1:5", "in brackets"}}) {
    try {
      options_of(wrong.rank, wrong.size, wrong.rendezvous);
      ADD_FAILURE() << "accepted, where it should say: " << wrong.says;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(wrong.says), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
