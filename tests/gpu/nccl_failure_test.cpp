// Peers that are late, silent or dead: within the deadline the others throw an error that names the
// operation, and their devices continue. Ranks are forked processes, which meet by TCP.
#include <csignal>

#include "comm/nccl/state.hpp"
#include "tests/comm/tcp/ranks.hpp"
#include "tests/gpu/device_combine_run.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// NCCL's abort takes some 200 ms; the rest is for a loaded host.
constexpr auto kAbortTime = 4s;

/// Runs `body` in a process of its own, since CUDA must not be used before a fork.
int exit_status_of(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = -1;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int count_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

class NcclFailure : public testing::Test {
 protected:
  void SetUp() override {
    if (exit_status_of(count_devices) < 2) GTEST_SKIP() << "fewer than two GPUs";
  }
};

void expect_device_works() {
  const DeviceFloats floats({1, 2, 3});
  EXPECT_EQ(floats.get(), (std::vector<float>{1, 2, 3}));
}

/// Expects that `body` throws a Timeout not much later than `deadline`.
void expect_timeout(std::chrono::milliseconds deadline, const std::string& operation,
                    const std::function<void()>& body) {
  const Clock::time_point start = Clock::now();
  try {
    body();
    ADD_FAILURE() << "nobody noticed";
  } catch (const Timeout& timeout) {
    EXPECT_EQ(timeout.waiter(), Rank{0});
    EXPECT_EQ(timeout.late(), std::vector{Rank{1}});
    EXPECT_EQ(timeout.operation(), operation);
  }
  const Clock::duration waited = Clock::now() - start;
  EXPECT_GE(waited, deadline - 50ms);
  EXPECT_LT(waited, deadline + kAbortTime);
  expect_device_works();
}

/// A combine of one rank, up to its wait.
void combine_once(NcclGroup& group, int rank) {
  CombineCase test = full_case(group.size(), 8, 8, 128, Scatter::kHeads);
  const DeviceCase on_device(test, rank);
  const OwnStream stream;
  DeviceCombiner combiner(group);
  combiner.plan(8, 8, 128, options_of(test, CombineStrategy::kAllToAll), stream.view());
  combiner.run(on_device.partial(), on_device.output(), stream.view());
  group.wait(stream.view(), "one token");
  expect_close(on_device.result(), on_device.expected(), test.dim);
}

/// A group of one: for any machine with a GPU.
TEST(NcclErrorOfOne, NamesRankAndOperationAndBreaksTheGroup) {
  const int status = exit_status_of([] {
    check(cudaSetDevice(0));
    NcclGroup group(make_nccl_unique_id(), Rank{0}, 1, 0);
    combine_once(group, 0);
    EXPECT_NE(group.handle(), nullptr);
    try {
      const OwnStream stream;
      const DeviceFloats floats({1});
      NcclGroup::State& state = group.state();
      constexpr int kNobody = 7;
      state.poll(ncclSend(floats.data(), 1, ncclFloat, kNobody, state.comm, stream.get()),
                 "call nobody");
      ADD_FAILURE() << "NCCL sent to a rank that is not there";
    } catch (const NcclError& error) {
      EXPECT_EQ(error.rank(), Rank{0});
      EXPECT_EQ(error.operation(), "call nobody");
      const std::string expected = "rank 0: call nobody: NCCL failed: invalid argument";
      EXPECT_EQ(std::string(error.what()).substr(0, expected.size()), expected);
    }
    EXPECT_EQ(group.handle(), nullptr);
    EXPECT_THROW(combine_once(group, 0), BrokenGroup) << "a broken group was used again";
    EXPECT_THROW(group.wait({}, "one token"), BrokenGroup);
    expect_device_works();
    return testing::Test::HasFailure() ? 1 : 0;
  });
  EXPECT_EQ(status, 0);
}

TEST_F(NcclFailure, NamesARankThatDoesNotMeet) {
  TcpProcesses<2>::run([](Communicator& comm) {
    const auto part = comm.split(0, 0);
    check(cudaSetDevice(comm.rank().value));
    if (comm.rank().value == 0) {
      part->set_deadline(500ms);
      expect_timeout(500ms, "meet for an NCCL group", [&] { NcclGroup(*part, 0); });
    }
    barrier(comm);
  });
}

TEST_F(NcclFailure, TimesOutIfARankDoesNotJoinAnId) {
  TcpProcesses<2>::run([](Communicator& comm) {
    if (comm.rank().value == 0) {
      check(cudaSetDevice(0));
      const NcclUniqueId id = make_nccl_unique_id();
      expect_timeout(1500ms, "make an NCCL group", [&] { NcclGroup(id, Rank{0}, 2, 0, 1500ms); });
    }
    barrier(comm);
  });
}

TEST_F(NcclFailure, TimesOutIfARankDoesNotCombine) {
  TcpProcesses<2>::run([](Communicator& comm) {
    const int me = comm.rank().value;
    check(cudaSetDevice(me));
    NcclGroup group(comm, me);
    combine_once(group, me);
    barrier(comm);
    if (me == 0) {
      group.set_deadline(1s);
      expect_timeout(1s, "one token", [&] { combine_once(group, me); });
      EXPECT_EQ(group.handle(), nullptr);
      EXPECT_THROW(combine_once(group, me), BrokenGroup) << "a broken group was used again";
    }
    barrier(comm);
    // The other rank's group is whole, and ends without waiting for the dead one.
    const Clock::time_point start = Clock::now();
    { const NcclGroup ends_here = std::move(group); }
    EXPECT_LT(Clock::now() - start, kAbortTime);
  });
}

TEST_F(NcclFailure, CloseDoesNotWaitForARankThatDoesNotClose) {
  TcpProcesses<2>::run([](Communicator& comm) {
    const int me = comm.rank().value;
    check(cudaSetDevice(me));
    NcclGroup group(comm, me);
    combine_once(group, me);
    if (me == 0) {
      group.set_deadline(1s);
      const Clock::time_point start = Clock::now();
      try {
        group.close();  // NCCL may need the other for it, or not
      } catch (const Timeout& timeout) {
        EXPECT_EQ(timeout.operation(), "close an NCCL group");
      }
      EXPECT_LT(Clock::now() - start, 1s + kAbortTime);
      EXPECT_EQ(group.handle(), nullptr);
      EXPECT_THROW(combine_once(group, me), BrokenGroup) << "a closed group was used again";
    }
    barrier(comm);
  });
}

TEST_F(NcclFailure, DetectsAKilledRank) {
  const std::uint16_t port = free_port();
  const pid_t victim = ::fork();
  if (victim == 0) {
    const auto comm = make_tcp_communicator(tcp_options(1, 2, port));
    check(cudaSetDevice(1));
    NcclGroup group(*comm, 1);
    combine_once(group, 1);
    ::raise(SIGKILL);
  }
  const int status = exit_status_of([port] {
    const auto comm = make_tcp_communicator(tcp_options(0, 2, port));
    check(cudaSetDevice(0));
    NcclGroup group(*comm, 0);
    combine_once(group, 0);
    EXPECT_THROW(barrier(*comm, "until it is dead"), PeerLost);
    group.set_deadline(1s);
    const Clock::time_point start = Clock::now();
    EXPECT_THROW(combine_once(group, 0), Error);
    EXPECT_LT(Clock::now() - start, 1s + kAbortTime);
    expect_device_works();
    return testing::Test::HasFailure() ? 1 : 0;
  });
  EXPECT_EQ(status, 0);
  ::waitpid(victim, nullptr, 0);
}

}  // namespace
}  // namespace kvmesh::test
