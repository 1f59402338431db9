// The contracts over the processes of mpirun, and the behaviour of MPI alone.
#include <mpi.h>

#include <thread>

#include "comm/mpi/mpi.hpp"
#include "tests/comm/combine/choice/agreed_table_case.hpp"
#include "tests/comm/combine/combine_contract.hpp"
#include "tests/comm/communicator_contract.hpp"

namespace {
int collectives_of_mpi = 0;
}

// MPI's own functions to make a communicator wait for all ranks without a deadline.
extern "C" int MPI_Comm_split(MPI_Comm comm, int color, int key, MPI_Comm* part) {
  ++collectives_of_mpi;
  return PMPI_Comm_split(comm, color, key, part);
}
extern "C" int MPI_Comm_dup(MPI_Comm comm, MPI_Comm* copy) {
  ++collectives_of_mpi;
  return PMPI_Comm_dup(comm, copy);
}
extern "C" int MPI_Comm_create(MPI_Comm comm, MPI_Group group, MPI_Comm* part) {
  ++collectives_of_mpi;
  return PMPI_Comm_create(comm, group, part);
}
extern "C" int MPI_Comm_create_group(MPI_Comm comm, MPI_Group group, int tag, MPI_Comm* part) {
  ++collectives_of_mpi;
  return PMPI_Comm_create_group(comm, group, tag, part);
}

namespace kvmesh::test {
namespace {

/// Messages split into many, as those past 1 GiB are.
struct ChunkedMpiRanks {
  static std::string name() { return "MpiChunked"; }
  static void run(const RankBody& body) {
    const std::unique_ptr<Communicator> comm = make_chunked_mpi_communicator(10007);
    comm->set_deadline(kTestDeadline);
    run_body(body, *comm);
  }
};

TEST(Mpi, DuplicatesAnEnginesCommunicator) {
  MPI_Comm self = MPI_COMM_SELF;
  const std::unique_ptr<Communicator> comm = make_mpi_communicator(&self);
  EXPECT_EQ(comm->size(), 1);
  EXPECT_EQ(comm->kind(), "mpi");
  barrier(*comm);
}

TEST(Mpi, RejectsTheCommunicatorOfNoRanks) {
  MPI_Comm none = MPI_COMM_NULL;
  EXPECT_THROW(make_mpi_communicator(&none), InvalidArgument);
}

TEST(Mpi, RejectsAnIntercommunicator) {
  MpiRanks::run([](Communicator& comm) {
    if (comm.size() == 1) return;
    const int rank = comm.rank().value, leader_of_other = rank == 0 ? 1 : 0;
    MPI_Comm side = MPI_COMM_NULL, both_sides = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, rank == 0 ? 0 : 1, rank, &side);
    MPI_Intercomm_create(side, 0, MPI_COMM_WORLD, leader_of_other, 0, &both_sides);
    EXPECT_THROW(make_mpi_communicator(&both_sides), InvalidArgument);
    MPI_Comm_free(&both_sides);
    MPI_Comm_free(&side);
  });
}

TEST(Mpi, RankZeroDecidesOnTheTableOfWays) {
  MpiRanks::run([](Communicator& comm) {
    if (comm.size() >= 4 && comm.size() % 2 == 0) expect_rank_0_decides(comm);
  });
}

TEST(Mpi, SplitsWithoutACollectiveOfMpi) {
  MpiRanks::run([](Communicator& comm) {
    const int before = collectives_of_mpi;
    const auto half = comm.split(comm.rank().value % 2, -comm.rank().value);
    barrier(*half->split(0, 0));
    EXPECT_EQ(collectives_of_mpi, before);
  });
}

/// Ranks 0 and 1 are in two groups. Rank 1 receives in the second first.
TEST(Mpi, MessagesOfGroupsDoNotMix) {
  MpiRanks::run([](Communicator& comm) {
    const auto pair = comm.split(comm.rank().value / 2, 0);
    const auto again = pair->split(0, 0);
    constexpr std::byte kFirst{1}, kSecond{2};
    if (comm.rank().value == 0 && pair->size() == 2) {
      for (Communicator* group : {pair.get(), again.get()}) {
        const std::byte sent = group == pair.get() ? kFirst : kSecond;
        const Outgoing out{Rank{1}, std::span(&sent, 1)};
        group->exchange(std::span(&out, 1), {}, "send");
      }
    } else if (comm.rank().value == 1) {
      for (Communicator* group : {again.get(), pair.get()}) {
        std::byte received{};
        const Incoming in{Rank{0}, std::span(&received, 1)};
        group->exchange({}, std::span(&in, 1), "receive");
        EXPECT_EQ(received, group == pair.get() ? kFirst : kSecond);
      }
    }
    barrier(comm);
  });
}

TEST(Mpi, GroupsBreakAlone) {
  MpiRanks::run([](Communicator& comm) {
    const auto part = comm.split(comm.rank().value / 2, 0);
    const auto other = comm.split(0, 0);
    if (part->size() == 2 && part->rank().value == 0) {
      part->set_deadline(std::chrono::milliseconds(50));
      EXPECT_THROW(barrier(*part, "nobody else comes"), Timeout);
      EXPECT_THROW(barrier(*part), BrokenGroup);
    }
    barrier(*other);
    barrier(*comm.split(0, 0));
  });
}

TEST(Mpi, ProvidesTheThreadLevelOfCommunicators) {
  int level = 0;
  ASSERT_EQ(MPI_Query_thread(&level), MPI_SUCCESS);
  EXPECT_GE(level, MPI_THREAD_SERIALIZED);
  EXPECT_NO_THROW(check_thread_level(MPI_THREAD_SERIALIZED));
  EXPECT_THROW(check_thread_level(MPI_THREAD_FUNNELED), Unsupported);
  // Another thread, while this one waits.
  MpiRanks::run([](Communicator& comm) { std::jthread([&] { barrier(comm); }).join(); });
}

TEST(Mpi, KnowsItsLauncher) { EXPECT_TRUE(MpiSession::launched_by_mpirun()); }

TEST(Mpi, DoesNotFinalizeRunningMpi) {
  int argc = 0;
  char** argv = nullptr;
  { MpiSession second(argc, argv); }
  MpiRanks::run([](Communicator& comm) { barrier(comm); });
}

TEST(Mpi, TimeoutOfMakingACommunicatorNamesTheRanks) {
  MpiRanks::run([](Communicator& comm) {
    const Rank last{comm.size() - 1};
    if (comm.size() > 1 && comm.rank() != last) {
      try {
        make_chunked_mpi_communicator(1 << 20, std::chrono::milliseconds(200));
        ADD_FAILURE() << "the last rank did not come, and nobody noticed";
      } catch (const Timeout& timeout) {
        EXPECT_EQ(timeout.waiter(), comm.rank());
        std::vector<Rank> others;
        for (int r = 0; r < comm.size(); ++r) {
          if (r != comm.rank().value) others.push_back(Rank{r});
        }
        EXPECT_EQ(timeout.late(), others);
        EXPECT_EQ(timeout.operation(), "make_mpi_communicator");
        expect_says(timeout, {"200 ms"});
      }
    }
    barrier(comm);
    // The last rank comes now, so that MPI, in which no rank has given up, can continue.
    if (comm.rank() == last) make_chunked_mpi_communicator(1 << 20);
    barrier(comm);
  });
}

TEST(Mpi, RejectsChunksThatMpiCannotCount) {
  EXPECT_THROW(make_chunked_mpi_communicator(0), InvalidArgument);
  EXPECT_THROW(make_chunked_mpi_communicator(std::size_t{1} << 31), InvalidArgument);
}

}  // namespace

using AllMpiRanks = testing::Types<MpiRanks, ChunkedMpiRanks>;
INSTANTIATE_TEST_SUITE_P(Mpi, CommunicatorContract, each_ranks(AllMpiRanks()), param_name);
INSTANTIATE_TEST_SUITE_P(Mpi, CombineContract, over_each<HostWays>(testing::Types<MpiRanks>()),
                         param_name);

}  // namespace kvmesh::test
