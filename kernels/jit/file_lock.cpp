#include "kernels/jit/file_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <utility>

namespace kvmesh::jit {
namespace {

/// flock cannot wait with a deadline, so it is polled. Compiling takes a thousand times this
/// interval.
constexpr std::chrono::milliseconds kPause{2};

bool is_locked(int file, std::chrono::steady_clock::time_point until) {
  while (::flock(file, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return false;
    if (std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

}  // namespace

std::optional<FileLock> FileLock::acquire(const std::filesystem::path& path,
                                          std::chrono::milliseconds deadline) {
  const auto until = std::chrono::steady_clock::now() + deadline;
  Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (file.get() < 0 || !is_locked(file.get(), until)) return std::nullopt;
  return FileLock(path, std::move(file));
}

// The lock ends with the descriptor, so after the name.
FileLock::~FileLock() {
  if (file_.get() >= 0) ::unlink(path_.c_str());
}

}  // namespace kvmesh::jit
