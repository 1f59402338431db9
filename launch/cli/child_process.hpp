// A process that answers line by line.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh::launch {

/// A running program whose standard input and output are one socket to this process; its standard
/// error is this process's. The program is executed afresh, so it has none of this process's
/// threads, device contexts and files. SIGINT and SIGTERM are blocked in it: a terminal sends them
/// to all processes, and this one decides what they end.
class ChildProcess {
 public:
  /// Starts `command`, whose first word is the program's path.
  /// @throws Error if the system starts no further process.
  explicit ChildProcess(const std::vector<std::string>& command);
  /// Kills the process if it has not ended.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  /// A descriptor that can be read when characters, or the end, have come.
  int descriptor() const { return socket_; }
  /// Whether read_line has a line already, which the descriptor no longer shows.
  bool has_line() const { return read_.find('\n') != read_.npos; }
  /// Returns false if the process reads no more.
  bool send(std::string_view text);
  /// Blocks until a whole line has come; returns it without its end. Empty: no line will come.
  std::optional<std::string> read_line();
  /// Whether a signal has stopped the process, so that it does nothing until SIGCONT.
  bool is_stopped() const;
  /// Ends the process at once, also a stopped one; wait() is then short.
  void kill();
  /// Ends the process's input and waits until the process has ended. Returns how it ended: "exit
  /// status 2", "signal 11 (Segmentation fault)"; and sets `status` to its exit status, or to 128 +
  /// the signal. Blocks.
  std::string wait(int& status);

 private:
  pid_t id_ = -1;
  int socket_ = -1;
  std::string read_;  // characters after the last whole line
};

}  // namespace kvmesh::launch
