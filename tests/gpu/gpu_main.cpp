// The main of tests that need a GPU: without one they are skipped, which CTest reports; also if
// each of them skips itself because it needs more GPUs.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "kvmesh/device_memory.hpp"
#include "tests/support/skipped.hpp"

namespace {

/// Runs in a process of its own: a test's child cannot use CUDA if this process has.
bool has_device() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(kvmesh::cuda_device_count() > 0 ? 0 : 1);
  int status = -1;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!has_device()) {
    std::puts("skipped: no GPU here");
    return kvmesh::test::kSkipped;
  }
  if (const int failed = RUN_ALL_TESTS()) return failed;
  return kvmesh::test::only_skipped() ? kvmesh::test::kSkipped : 0;
}
