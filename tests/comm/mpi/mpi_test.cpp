// The contracts over the processes of mpirun, and what only MPI has.
#include <mpi.h>

#include "comm/mpi/mpi.hpp"
#include "tests/comm/combine/combine_contract.hpp"
#include "tests/comm/communicator_contract.hpp"

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

TEST(Mpi, KnowsItsLauncher) { EXPECT_TRUE(MpiSession::launched_by_mpirun()); }

TEST(Mpi, LeavesRunningMpiToItsOwner) {
  int argc = 0;
  char** argv = nullptr;
  { MpiSession second(argc, argv); }
  MpiRanks::run([](Communicator& comm) { barrier(comm); });
}

TEST(Mpi, NamesWhoWaitedForWhomToMakeACommunicator) {
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
    // Now the last one comes, so that MPI, for which nobody gave up, can go on.
    if (comm.rank() == last) make_chunked_mpi_communicator(1 << 20);
    barrier(comm);
  });
}

TEST(Mpi, RefusesChunksThatMpiCannotCount) {
  EXPECT_THROW(make_chunked_mpi_communicator(0), InvalidArgument);
  EXPECT_THROW(make_chunked_mpi_communicator(std::size_t{1} << 31), InvalidArgument);
}

}  // namespace

using AllMpiRanks = testing::Types<MpiRanks, ChunkedMpiRanks>;
INSTANTIATE_TYPED_TEST_SUITE_P(Mpi, CommunicatorContract, AllMpiRanks, RankNames);
using HostOverMpi = WayOver<HostWays, MpiRanks>;
INSTANTIATE_TYPED_TEST_SUITE_P(Mpi, CombineContract, HostOverMpi, RankNames);

}  // namespace kvmesh::test
