// Standard output and standard error of the program, written so that nothing is lost in silence.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "kvmesh/error.hpp"

namespace kvmesh::launch {

/// Standard output, or the file of --json, did not take what was written.
class OutputError : public Error {
 public:
  using Error::Error;
};

/// Results go to standard output, all else (progress, statistics, errors) to standard error. One
/// per process; one thread at a time.
class Output {
 public:
  /// Opens the standard streams that the caller closed on something that refuses what is written,
  /// so that no file or socket gets their numbers, and with them the program's text.
  Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  /// Progress is rewritten in place. Unset: where standard error is a terminal. mpirun gives its
  /// ranks a terminal of its own even where their output goes to a file.
  void set_in_place(bool in_place) { in_place_ = in_place; }

  /// Writes a part of the result to standard output, at once. @throws OutputError.
  void put(std::string_view text);
  /// Notes that another rank put `text`: errors of this one then start on a fresh line, too.
  void follow(std::string_view text);
  /// Writes `text`, whole lines, to standard error; first ends a line that put() or follow() left
  /// open.
  void tell(std::string_view text);
  /// Shows how far the program is: in place many times a second, else on a new line every few
  /// seconds. `text` is called when it is time.
  void progress(const std::function<std::string()>& text);
  /// Takes what progress() left in place off the terminal.
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
