// A session in a process that no launcher of its MPI library has started.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "kvmesh/communicator.hpp"
#include "kvmesh/tcp.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh::test {
namespace {

/// Starts MPI as rank `rank` of a PMIx job that has no server. Returns 0 if the session notices.
int notices_the_other_ranks(const char* rank) {
  const Variable pmix_rank("PMIX_RANK", rank), job("PMIX_NAMESPACE", "job7");
  int argc = 0;
  char** argv = nullptr;
  try {
    const MpiSession session(argc, argv, std::chrono::seconds(20));
    return 1;
  } catch (const RendezvousError& error) {
    return std::string(error.what()).find(std::string("as rank ") + rank) == std::string::npos;
  } catch (...) {
    return 2;
  }
}

TEST(MpiSession, RejectsToBeAloneInAJobOfPmix) {
  if (!mpi_library().starts_with("Open MPI")) GTEST_SKIP() << "other libraries keep the variables";
  for (const char* rank : {"0", "2"}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) ::_exit(notices_the_other_ranks(rank));
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << "rank " << rank;
  }
}

}  // namespace
}  // namespace kvmesh::test
