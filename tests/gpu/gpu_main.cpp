// The main of tests that need a GPU: without one they are skipped, which CTest then says; also if
// each of them skips itself, since it needs more GPUs than there are.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "kvmesh/device_memory.hpp"

namespace {

constexpr int kSkipped = 77;  // the test's SKIP_RETURN_CODE

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
    return kSkipped;
  }
  if (const int failed = RUN_ALL_TESTS()) return failed;
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  const bool only_skipped = all.skipped_test_count() > 0 && all.successful_test_count() == 0;
  return only_skipped ? kSkipped : 0;
}
