// Standard output and standard error of the program. An error in writing is never ignored.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "kvmesh/error.hpp"

namespace kvmesh::launch {

/// Standard output or the file of --json could not be written.
class OutputError : public Error {
 public:
  using Error::Error;
};

/// Results go to standard output, all else (progress, statistics, errors) to standard error. One
/// per process; one thread at a time.
class Output {
 public:
  /// Opens standard streams that the caller has closed, as streams that refuse all text. Otherwise
  /// a file or a socket would get their descriptors, and with them the program's text.
  Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  /// Sets whether progress is rewritten in place. Default: if standard error is a terminal. mpirun
  /// gives its ranks a terminal even if its own output goes to a file.
  void set_in_place(bool in_place) { in_place_ = in_place; }

  /// Writes a part of the result to standard output, at once. @throws OutputError.
  void put(std::string_view text);
  /// Checks, at the end of a job of mpirun, that its standard output can take what it passes on:
  /// Open MPI ends with status 0 if it cannot. Finds a full disk, /dev/full and a closed output, if
  /// mpirun runs on this machine. @throws OutputError.
  static void check_launcher();
  /// Notes that another rank has put `text`, so that errors of this rank start on a new line.
  void follow(std::string_view text);
  /// Writes `text` (whole lines) to standard error. First ends an unfinished line of put() or
  /// follow().
  void tell(std::string_view text);
  /// Shows the progress: in place ten times a second, else on a new line every five seconds. Calls
  /// `text` only then.
  void progress(const std::function<std::string()>& text);
  /// Removes the line of progress() from the terminal.
  void end_progress();

  /// Writes `text` to the file `to`, or to standard output if it is "-". @throws OutputError.
  void write(const std::string& to, std::string_view text);

 private:
  bool in_place_;
  bool line_is_open_ = false;
  bool line_is_here_ = false;  // this process put it
  bool shows_progress_ = false;
  std::chrono::steady_clock::time_point shown_;
};

}  // namespace kvmesh::launch
