// The contracts over the processes of mpirun, and what only MPI has.
#include <mpi.h>

#include "comm/mpi.hpp"
#include "tests/comm/combine_contract.hpp"
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

TEST(Mpi, RefusesChunksThatMpiCannotCount) {
  EXPECT_THROW(make_chunked_mpi_communicator(0), InvalidArgument);
  EXPECT_THROW(make_chunked_mpi_communicator(std::size_t{1} << 31), InvalidArgument);
}

}  // namespace

using AllMpiRanks = testing::Types<MpiRanks, ChunkedMpiRanks>;
INSTANTIATE_TYPED_TEST_SUITE_P(Mpi, CommunicatorContract, AllMpiRanks, RankNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Mpi, CombineContract, MpiRanks, RankNames);

}  // namespace kvmesh::test
