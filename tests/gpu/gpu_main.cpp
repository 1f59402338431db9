// The main of tests that need a GPU: without one they are skipped, which CTest then says.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "kvmesh/device_memory.hpp"

namespace {

/// Asked in a process of its own: what a test forks cannot use CUDA if this process has.
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
    return 77;  // the test's SKIP_RETURN_CODE
  }
  return RUN_ALL_TESTS();
}
