// A process that a test has started and kills.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace kvmesh::test {

/// Killed at the end, if not before.
class KilledProcess {
 public:
  explicit KilledProcess(pid_t pid) : pid_(pid) {}
  ~KilledProcess() { die(); }
  KilledProcess(const KilledProcess&) = delete;
  KilledProcess& operator=(const KilledProcess&) = delete;

  void die() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  pid_t pid_;
};

}  // namespace kvmesh::test
