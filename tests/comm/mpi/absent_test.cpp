// A program linked with the source that replaces MPI in a build without it.
#include <gtest/gtest.h>

#include <string>

#include "kvmesh/mesh.hpp"
#include "kvmesh/tcp.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh {
namespace {

TEST(WithoutMpi, NamesNoLibrary) { EXPECT_EQ(mpi_library(), ""); }

TEST(WithoutMpi, ReportsMissingMpiUnderMpirun) {
  const test::Variable size("OMPI_COMM_WORLD_SIZE", "2"), rank("OMPI_COMM_WORLD_RANK", "1");
  int argc = 0;
  char** argv = nullptr;
  const MpiSession session(argc, argv);
  try {
    Mesh::from_launcher();
    FAIL() << "two ranks were started, and this one would be alone";
  } catch (const Unsupported& error) {
    EXPECT_NE(std::string(error.what()).find("no MPI"), std::string::npos) << error.what();
  }
}

TEST(WithoutMpi, HasLoopbackAndTcp) {
  run_on_threads(2, [](Mesh& mesh) { EXPECT_EQ(mesh.world().kind(), "loopback"); });
  EXPECT_EQ(make_tcp_communicator({.rank = 0, .size = 1})->kind(), "tcp");
}

}  // namespace
}  // namespace kvmesh
