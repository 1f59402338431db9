// The loopback ranks' own behaviour: a failing rank ends its peers' waits, and the first error
// wins.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>

#include "kvmesh/communicator.hpp"
#include "tests/support/few_threads.hpp"

namespace kvmesh {
namespace {

TEST(Loopback, RethrowsTheFirstErrorAndEndsTheOthersWaits) {
  const auto start = std::chrono::steady_clock::now();
  std::atomic<int> stopped = 0;
  const auto body = [&](Communicator& comm) {
    if (comm.rank().value == 2) throw std::out_of_range("the first error");
    try {
      barrier(comm, "never met");
    } catch (const Timeout&) {
      ADD_FAILURE() << "waited for a rank that has failed";
    } catch (const Error&) {
      ++stopped;
      throw;
    }
  };
  EXPECT_THROW(run_loopback(4, body, std::chrono::seconds(60)), std::out_of_range);
  EXPECT_EQ(stopped, 3);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(Loopback, EndsWaitsInSplitGroupsToo) {
  const auto body = [&](Communicator& comm) {
    const std::unique_ptr<Communicator> part = comm.split(comm.rank().value % 2, 0);
    if (comm.rank().value == 0) throw std::out_of_range("the first error");
    barrier(*part);
    barrier(comm);
  };
  EXPECT_THROW(run_loopback(4, body, std::chrono::seconds(60)), std::out_of_range);
}

TEST(Loopback, TimesOutWhileSending) {
  const auto body = [&](Communicator& comm) {
    if (comm.rank().value == 1) return;
    const std::byte byte{};
    const Outgoing out{Rank{1}, std::span(&byte, 1)};
    comm.exchange(std::span(&out, 1), {}, "unheard");
  };
  try {
    run_loopback(2, body, std::chrono::milliseconds(20));
    FAIL() << "nobody took the byte";
  } catch (const Timeout& timeout) {
    EXPECT_EQ(timeout.late(), std::vector{Rank{1}});
    EXPECT_EQ(timeout.operation(), "unheard");
  }
}

TEST(Loopback, RejectsZeroRanks) {
  EXPECT_THROW(run_loopback(0, [](Communicator&) {}), InvalidArgument);
}

// Returns 0 if a run ends at once with OutOfThreads where the system starts fewer threads than it
// has ranks; else a number for the failure.
int refused_without_enough_threads() {
  try {
    run_loopback(3, [](Communicator& comm) { barrier(comm); });
    return 1;
  } catch (const OutOfThreads& error) {
    return error.asked() == 3 && error.started() < 3 ? 0 : 2;
  } catch (...) {
    return 3;
  }
}

TEST(Loopback, FailsAtOnceIfTheSystemStartsTooFewThreads) {
  test::expect_with_few_threads(2, refused_without_enough_threads);
}

TEST(SingleCommunicator, IsAGroupOfOneThatSendsNothing) {
  const std::unique_ptr<Communicator> comm = make_single_communicator();
  EXPECT_EQ(comm->size(), 1);
  EXPECT_EQ(comm->rank(), Rank{0});
  barrier(*comm);
  double value = 2.5;
  all_reduce_sum(*comm, std::span(&value, 1));
  EXPECT_EQ(value, 2.5);
  EXPECT_EQ(comm->split(3, 1)->size(), 1);
  EXPECT_EQ(comm->sent_bytes(), 0u);
}

TEST(MpiWithoutASession, IsANamedError) {
  EXPECT_THROW(make_mpi_communicator(), Unsupported);
  EXPECT_THROW(make_mpi_communicator(nullptr), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh
