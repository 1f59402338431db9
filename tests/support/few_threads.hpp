// A process whose user may start few threads.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace kvmesh::test {

/// Runs `body`, which returns 0 or a number for its failure, in a process of its own, and expects
/// 0. Its user may have at most `most` threads in all. Root has no limit, so it becomes another
/// user. Skips the test where that cannot be done.
inline void expect_with_few_threads(rlim_t most, int (*body)()) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer has a thread of its own, and ends where it cannot start one";
#endif
  constexpr uid_t kNobody = 65534;
  constexpr int kNoLimit = 77;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    const rlimit limit{most, most};
    const bool is_limited =
        (getuid() != 0 || setuid(kNobody) == 0) && setrlimit(RLIMIT_NPROC, &limit) == 0;
    _exit(is_limited ? body() : kNoLimit);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "it hung or crashed: signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == kNoLimit) GTEST_SKIP() << "the limit cannot be set here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace kvmesh::test
