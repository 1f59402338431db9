// Processes for tests of shared files and memory.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

namespace kvmesh::test {

/// Runs `body` in this many processes at once. Returns true if it returned true in all of them.
template <class Body>
bool in_processes(int count, Body body) {
  std::vector<pid_t> children;
  for (int i = 0; i < count; ++i) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(body(i) ? 0 : 1);
    children.push_back(child);
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    all = all && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return all;
}

/// A process that runs `body` and then sleeps, until it is killed here.
class Sleeper {
 public:
  /// Returns when `body` is done.
  template <class Body>
  explicit Sleeper(Body body) {
    int pipe[2];
    if (::pipe(pipe) != 0) return;
    child_ = ::fork();
    if (child_ == 0) {
      ::alarm(60);  // ends the child if this process cannot
      const auto kept = body();
      if (::write(pipe[1], "x", 1) == 1) {
        while (true) ::pause();
      }
      ::_exit(1);
    }
    ::close(pipe[1]);
    char done = 0;
    is_ready_ = ::read(pipe[0], &done, 1) == 1;
    ::close(pipe[0]);
  }
  ~Sleeper() { kill(); }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;

  bool is_ready() const { return is_ready_; }
  void kill() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    child_ = -1;
  }

 private:
  pid_t child_ = -1;
  bool is_ready_ = false;
};

}  // namespace kvmesh::test
