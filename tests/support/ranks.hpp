// The ranks of a contract suite: threads of the test, or the processes of mpirun.
//
// A suite takes one of these as its type or parameter and calls its `run(body)`, which calls `body`
// once per rank with that rank's communicator. Programs for mpirun add tests/support/mpi_main.cpp.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvmesh/communicator.hpp"
#include "kvmesh/membership.hpp"

namespace kvmesh::test {

using RankBody = std::function<void(Communicator&)>;

/// Long enough for a loaded host, short enough to fail a hanging test.
inline constexpr std::chrono::seconds kTestDeadline{30};

/// A membership in which, on several ranks, no rank holds the pages of its own number.
inline Membership rotated_membership(int ranks) {
  std::vector<Rank> holders;
  for (int r = 0; r < ranks; ++r) holders.push_back(Rank{(r + 1) % ranks});
  return Membership(1, std::move(holders));
}

/// Throws if an ASSERT ended the body early: otherwise its peers would wait for a rank that has
/// left.
inline void run_body(const RankBody& body, Communicator& comm) {
  body(comm);
  if (testing::Test::HasFatalFailure()) throw Error("an assertion failed on one of the ranks");
}

template <int Count>
struct LoopbackRanks {
  static std::string name() { return "Loopback" + std::to_string(Count); }
  static void run(const RankBody& body) {
    run_loopback(
        Count, [&](Communicator& comm) { run_body(body, comm); }, kTestDeadline);
  }
};

/// Each run has a communicator of its own, so a test that breaks one does not disturb the next.
struct MpiRanks {
  static std::string name() { return "Mpi"; }
  static void run(const RankBody& body) {
    const std::unique_ptr<Communicator> comm = make_mpi_communicator();
    comm->set_deadline(kTestDeadline);
    run_body(body, *comm);
  }
};

using AllLoopbackRanks = testing::Types<LoopbackRanks<1>, LoopbackRanks<2>, LoopbackRanks<3>,
                                        LoopbackRanks<4>, LoopbackRanks<8>>;

/// Ranks as a value: a suite with it as parameter is compiled once for all kinds of ranks.
struct RankKind {
  std::string name;
  void (*run)(const RankBody& body);
};
inline void PrintTo(const RankKind& kind, std::ostream* out) { *out << kind.name; }

/// The ranks of a list of types: INSTANTIATE_TEST_SUITE_P(..., each_ranks(Types()), param_name).
template <class... Types>
auto each_ranks(testing::internal::ProxyTypeList<Types...>) {
  return testing::Values(RankKind{Types::name(), &Types::run}...);
}
/// Names a case after its parameter, which has a name.
inline constexpr auto param_name = [](const auto& info) { return info.param.name; };

/// Names a typed suite's cases after their ranks: INSTANTIATE_TYPED_TEST_SUITE_P(..., RankNames).
struct RankNames {
  template <class Ranks>
  static std::string GetName(int) {
    return Ranks::name();
  }
};

/// The seed of a random test: KVMESH_SEED if it is set, else a new one; the same on all ranks.
/// Collective. Tests put it into SCOPED_TRACE(seed_trace(seed)).
inline std::uint64_t agreed_seed(Communicator& comm) {
  std::uint64_t seed = 0;
  if (comm.rank().value == 0) {
    const char* given = std::getenv("KVMESH_SEED");
    seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    std::cout << "KVMESH_SEED=" << seed << std::endl;
  }
  broadcast(comm, Rank{0}, std::as_writable_bytes(std::span(&seed, 1)), "agree on a seed");
  return seed;
}

inline std::string seed_trace(std::uint64_t seed) {
  return "run it again with KVMESH_SEED=" + std::to_string(seed);
}

}  // namespace kvmesh::test
