// The loopback ranks' own behaviour: a failing rank ends its peers' waits, and the first error
// wins.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>

#include "kvmesh/communicator.hpp"

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
// has ranks. Runs in a process of its own, to which the limit applies. Root has no limit.
int refused_without_enough_threads() {
  constexpr uid_t kNobody = 65534;
  if (getuid() == 0 && setuid(kNobody) != 0) return 77;
  const rlimit one_more{2, 2};
  if (setrlimit(RLIMIT_NPROC, &one_more) != 0) return 77;
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
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer has a thread of its own, and ends where it cannot start one";
#endif
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    _exit(refused_without_enough_threads());
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "it hung or crashed: signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "the limit cannot be set here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
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
