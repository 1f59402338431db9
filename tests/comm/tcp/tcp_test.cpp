// The TCP communicator's own behaviour: groups of one need no port, a dead peer is named, groups
// break alone, and waiting costs no core.
#include <gtest/gtest.h>

#include <csignal>
#include <ctime>
#include <stdexcept>

#include "tests/comm/communicator_contract.hpp"
#include "tests/comm/tcp/ranks.hpp"
#include "tests/comm/tcp/stranger.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;

TEST(Tcp, IsAGroupOfOneWithoutAPort) {
  const std::unique_ptr<Communicator> comm = make_tcp_communicator({});
  EXPECT_EQ(comm->size(), 1);
  EXPECT_EQ(comm->kind(), "tcp");
  barrier(*comm);
  EXPECT_EQ(comm->split(2, 0)->size(), 1);
}

TEST(Tcp, HasTheDeadlineOfItsMeeting) {
  const std::unique_ptr<Communicator> comm = make_tcp_communicator({.deadline = 1234ms});
  EXPECT_EQ(comm->deadline(), 1234ms);
}

/// Rank 1 of two is a process that is killed while rank 0 waits for it.
TEST(Tcp, NamesADeadPeer) {
  const std::uint16_t port = free_port();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto comm = make_tcp_communicator(tcp_options(1, 2, port));
    barrier(*comm);
    ::raise(SIGKILL);
  }
  const auto comm = make_tcp_communicator(tcp_options(0, 2, port));
  barrier(*comm);
  try {
    barrier(*comm, "one token");
    FAIL() << "rank 1 is dead";
  } catch (const PeerLost& lost) {
    EXPECT_EQ(lost.peer(), Rank{1});
    EXPECT_EQ(lost.waiter(), Rank{0});
    expect_says(lost, {"rank 0 lost rank 1 in one token"});
  }
  EXPECT_THROW(barrier(*comm), BrokenGroup) << "a broken communicator was used again";
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
}

/// Rank 1 waits for rank 0, which waits for rank 2 and gives up.
TEST(Tcp, SurvivorNamesTheLateRank) {
  TcpRanks<3>::run([](Communicator& comm) {
    std::byte received{};
    const Rank from{comm.rank() == Rank{1} ? 0 : 2};
    const Incoming in{from, std::span(&received, 1)};
    if (comm.rank() == Rank{0}) {
      comm.set_deadline(100ms);
      EXPECT_THROW(comm.exchange({}, std::span(&in, 1), "one token"), Timeout);
    } else if (comm.rank() == Rank{1}) {
      try {
        comm.exchange({}, std::span(&in, 1), "another token");
        ADD_FAILURE() << "rank 0 sent nothing";
      } catch (const Timeout& error) {
        EXPECT_EQ(error.waiter(), Rank{1});
        EXPECT_EQ(error.late(), std::vector{Rank{2}});
        expect_says(error, {"another token (as another rank reports)"});
      }
    }
  });
}

/// Rank 1 waits for rank 0, which waits for rank 2 and sees its connection end.
TEST(Tcp, SurvivorNamesTheLostRank) {
  const auto body = [](Communicator& comm) {
    if (comm.rank() == Rank{2}) throw Error("rank 2 ends");
    std::byte received{};
    const Rank from{comm.rank() == Rank{1} ? 0 : 2};
    const Incoming in{from, std::span(&received, 1)};
    if (comm.rank() == Rank{0}) {
      EXPECT_THROW(comm.exchange({}, std::span(&in, 1), "one token"), PeerLost);
      return;
    }
    try {
      comm.exchange({}, std::span(&in, 1), "another token");
      ADD_FAILURE() << "rank 0 sent nothing";
    } catch (const Timeout& error) {
      EXPECT_EQ(error.late(), std::vector{Rank{2}});
    } catch (const PeerLost& error) {
      ADD_FAILURE() << error.what();
    }
  };
  EXPECT_THROW(TcpRanks<3>::run(body), Error);
}

TEST(Tcp, GroupsBreakAlone) {
  TcpRanks<4>::run([](Communicator& comm) {
    const std::unique_ptr<Communicator> part = comm.split(comm.rank().value % 2, 0);
    const std::unique_ptr<Communicator> other = comm.split(0, 0);
    if (part->rank().value == 0) {
      part->set_deadline(50ms);
      EXPECT_THROW(barrier(*part, "nobody else comes"), Timeout);
    }
    barrier(comm);
    barrier(*other);
    EXPECT_EQ(comm.split(0, 0)->size(), 4);
  });
}

/// Takes part in a split of all ranks up to the point where they connect, which it leaves out. The
/// others call it at `port`, if they do. The two messages are those of split.
void only_begin_to_split(Communicator& comm, int key, std::uint64_t port) {
  struct Choice {
    int color, key;
  };
  struct Door {
    std::uint64_t token, port;
  };
  all_gather_value(comm, Choice{0, key}, "split");
  all_gather_value(comm, Door{1, port}, "split");
}

/// Ranks 0 and 1 wait for a call of rank 2.
TEST(Tcp, SplitThatFailsBreaksTheGroup) {
  TcpRanks<3>::run([](Communicator& comm) {
    if (comm.rank() == Rank{2}) return only_begin_to_split(comm, -2, 0);
    comm.set_deadline(200ms);
    try {
      comm.split(0, -comm.rank().value);
      ADD_FAILURE() << "rank 2 has not connected";
    } catch (const Timeout& error) {
      EXPECT_EQ(error.waiter(), comm.rank());
      EXPECT_EQ(error.late(), std::vector{Rank{2}}) << "in the ranks of the group that is split";
    }
    EXPECT_THROW(barrier(comm), BrokenGroup);
    EXPECT_THROW(comm.split(0, 0), BrokenGroup);
  });
}

/// Rank 2 ends after its last message of the split. The others wait for its call.
TEST(Tcp, SplitNamesADeadRankAtOnce) {
  const auto start = tcp::Clock::now();
  const auto body = [](Communicator& comm) {
    if (comm.rank() == Rank{2}) {
      only_begin_to_split(comm, 0, 0);
      throw std::out_of_range("dead");  // its connections end
    }
    try {
      comm.split(0, 0);
      ADD_FAILURE() << "rank 2 is dead";
    } catch (const PeerLost& lost) {
      EXPECT_EQ(lost.peer(), Rank{2});
      expect_says(lost, {"lost rank 2 in split"});
    } catch (const Timeout& error) {  // from the rank that noticed first
      EXPECT_EQ(error.late(), std::vector{Rank{2}});
    }
  };
  EXPECT_THROW(TcpRanks<3>::run(body), std::out_of_range);
  EXPECT_LT(tcp::Clock::now() - start, kTestDeadline / 3);
}

void expect_report_of_split(Communicator& comm, int key, Rank late) {
  try {
    comm.split(0, key);
    ADD_FAILURE() << "rank " << late.value << " has not connected";
  } catch (const Timeout& error) {
    EXPECT_EQ(error.late(), std::vector{late});
    expect_says(error, {"split (as another rank reports)"});
  }
}

/// Rank 3 calls first rank 2, in vain, so that it gives up and never calls ranks 0 and 1.
TEST(Tcp, SplitEndsWhereACallerGivesUp) {
  const auto start = tcp::Clock::now();
  const std::uint16_t silent_port = free_port();
  Stranger silent("");
  silent.listen(silent_port);
  TcpRanks<4>::run([&](Communicator& comm) {
    const int key = -comm.rank().value;
    if (comm.rank() == Rank{2}) return only_begin_to_split(comm, key, silent_port);
    if (comm.rank() != Rank{3}) return expect_report_of_split(comm, key, Rank{2});
    comm.set_deadline(100ms);
    EXPECT_THROW(comm.split(0, key), Timeout);
  });
  EXPECT_LT(tcp::Clock::now() - start, kTestDeadline / 3);
}

/// Ranks 1 and 2 call rank 0, which gives up on rank 2 first and then ends the new connections.
TEST(Tcp, SplitPrefersTheReportOfARankToTheEndOfItsConnection) {
  const std::uint16_t port = free_port();
  TcpRanks<3>::run([&](Communicator& comm) {
    if (comm.rank() != Rank{0}) return expect_report_of_split(comm, 0, Rank{2});
    Stranger silent("");
    silent.listen(port);
    only_begin_to_split(comm, 0, port);
    comm.set_deadline(20ms);
    std::byte byte{};
    const Incoming in{Rank{2}, std::span(&byte, 1)};
    EXPECT_THROW(comm.exchange({}, std::span(&in, 1), "token"), Timeout);
  });
}

/// All ranks send more than any socket holds before one of them reads.
TEST(Tcp, LargeMessagesBothWaysDoNotBlock) {
  TcpRanks<3>::run([](Communicator& comm) {
    constexpr std::size_t kBytes = std::size_t{8} << 20;
    std::vector<Bytes> sent(3), received(3, Bytes(kBytes));
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    for (int peer = 0; peer < 3; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      sent[p] = message(comm.rank().value, peer, 0, kBytes);
      outgoing.push_back({Rank{peer}, sent[p]});
      incoming.push_back({Rank{peer}, received[p]});
    }
    comm.exchange(outgoing, incoming, "large, both ways");
    for (int peer = 0; peer < 3; ++peer) {
      EXPECT_TRUE(received[static_cast<std::size_t>(peer)] ==
                  message(peer, comm.rank().value, 0, kBytes));
    }
  });
}

TEST(Tcp, WaitingRankUsesNoCore) {
  TcpRanks<2>::run([](Communicator& comm) {
    barrier(comm);
    if (comm.rank().value == 1) std::this_thread::sleep_for(400ms);
    const auto cpu_seconds = [] {
      timespec time{};
      ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
      return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    };
    const double before = cpu_seconds();
    barrier(comm);
    EXPECT_LT(cpu_seconds() - before, 0.05);
  });
}

}  // namespace
}  // namespace kvmesh::test
