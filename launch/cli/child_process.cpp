#include "launch/cli/child_process.hpp"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <system_error>
#include <utility>

#include "kvmesh/error.hpp"

namespace kvmesh::launch {
namespace {

[[noreturn]] void fail(const std::string& program, int error) {
  throw Error(fmt::format("cannot start {}: {}", program, std::generic_category().message(error)));
}

// Starts the command with `socket` as its standard input and output. Returns 0 or the error.
int spawn(const std::vector<std::string>& command, int socket, pid_t& id) {
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, socket, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, socket, STDOUT_FILENO);
  sigset_t blocked;
  sigemptyset(&blocked);
  for (const int number : {SIGINT, SIGTERM}) sigaddset(&blocked, number);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  posix_spawnattr_setsigmask(&attributes, &blocked);
  const int error = ::posix_spawn(&id, words[0], &actions, &attributes, words.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command) {
  std::array<int, 2> ends{};
  // Closed on exec, so that no other child keeps this one's input open.
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    fail(command.front(), errno);
  }
  const int error = spawn(command, ends[1], id_);
  ::close(ends[1]);
  socket_ = ends[0];
  if (error == 0) return;
  ::close(socket_);
  fail(command.front(), error);
}

ChildProcess::~ChildProcess() {
  if (id_ > 0) {
    kill();
    while (::waitpid(id_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  ::close(socket_);
}

bool ChildProcess::send(std::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = ::send(socket_, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return false;
    text.remove_prefix(static_cast<std::size_t>(sent));
  }
  return true;
}

std::optional<std::string> ChildProcess::read_line() {
  std::size_t end = 0;
  while ((end = read_.find('\n')) == read_.npos) {
    std::array<char, 4096> part{};
    const ssize_t got = ::recv(socket_, part.data(), part.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return std::nullopt;
    read_.append(part.data(), static_cast<std::size_t>(got));
  }
  std::string line = read_.substr(0, end);
  read_.erase(0, end + 1);
  return line;
}

bool ChildProcess::is_stopped() const {
  siginfo_t stopped{};
  return ::waitid(P_PID, static_cast<id_t>(id_), &stopped, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
         stopped.si_pid == id_;
}

void ChildProcess::kill() { ::kill(id_, SIGKILL); }

std::string ChildProcess::wait(int& status) {
  ::shutdown(socket_, SHUT_WR);
  int ended = 0;
  while (::waitpid(id_, &ended, 0) < 0 && errno == EINTR) {
  }
  id_ = -1;
  if (WIFEXITED(ended)) {
    status = WEXITSTATUS(ended);
    return fmt::format("exit status {}", status);
  }
  status = 128 + WTERMSIG(ended);
  return fmt::format("signal {} ({})", WTERMSIG(ended), ::strsignal(WTERMSIG(ended)));
}

}  // namespace kvmesh::launch
