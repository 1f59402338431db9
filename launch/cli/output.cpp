#include "launch/cli/output.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <system_error>

#include "launch/cli/clock.hpp"

namespace kvmesh::launch {
namespace {

// Replaces a closed standard stream by an empty one: output that refuses all text, and errors that
// are dropped.
void open_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0) continue;
    // open() gives the lowest free number: this one, as those below are open by now.
    static_cast<void>(::open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY));
  }
}

[[noreturn]] void fail_to_write(std::string_view what, int error) {
  throw OutputError(fmt::format("cannot write {}: {}; the result is not complete", what,
                                std::generic_category().message(error)));
}

// Returns false if the stream did not take all of the text; errno then has the reason.
bool write_all(std::FILE* stream, std::string_view text) {
  const bool taken = std::fwrite(text.data(), 1, text.size(), stream) == text.size();
  return std::fflush(stream) == 0 && taken;
}

// Returns the reason why a file that another process writes would take no more; 0 if none is known.
int error_of_output(const std::string& path) {
  struct stat file {};
  if (::stat(path.c_str(), &file) != 0) return errno == ENOENT ? EBADF : 0;
  if (S_ISCHR(file.st_mode) && file.st_rdev == makedev(1, 7)) return ENOSPC;  // /dev/full
  struct statvfs disk {};
  if (!S_ISREG(file.st_mode) || ::statvfs(path.c_str(), &disk) != 0) return 0;
  return disk.f_bavail == 0 ? ENOSPC : 0;
}

}  // namespace

Output::Output() : shown_(Clock::now()) {
  open_standard_streams();
  in_place_ = ::isatty(STDERR_FILENO) != 0;
}

void Output::put(std::string_view text) {
  end_progress();
  follow(text);
  line_is_here_ = true;
  if (!write_all(stdout, text)) {
    line_is_open_ = false;
    fail_to_write("standard output", errno);
  }
}

// mpirun starts the ranks of its machine itself, so it is the parent.
void Output::check_launcher() {
  const int error = error_of_output(fmt::format("/proc/{}/fd/1", ::getppid()));
  if (error != 0) fail_to_write("standard output by way of mpirun", error);
}

void Output::follow(std::string_view text) {
  if (!text.empty()) line_is_open_ = text.back() != '\n';
}

void Output::tell(std::string_view text) {
  end_progress();
  if (line_is_open_) write_all(line_is_here_ ? stdout : stderr, "\n");
  line_is_open_ = false;
  write_all(stderr, text);
}

void Output::progress(const std::function<std::string()>& text) {
  const std::chrono::milliseconds pause(!in_place_ ? 5000 : shows_progress_ ? 100 : 0);
  if (Clock::now() - shown_ < pause) return;
  if (in_place_) {
    write_all(stderr, fmt::format("\r{}\033[K", text()));
    shows_progress_ = true;
  } else {
    tell(text() + "\n");
  }
  shown_ = Clock::now();
}

void Output::end_progress() {
  if (shows_progress_) write_all(stderr, "\r\033[K");
  shows_progress_ = false;
}

void Output::write(const std::string& to, std::string_view text) {
  if (to == "-") return put(text);
  errno = 0;
  std::ofstream file(to, std::ios::binary);
  file << text << std::flush;
  if (!file) fail_to_write(fmt::format("'{}'", to), errno != 0 ? errno : EIO);
}

}  // namespace kvmesh::launch
