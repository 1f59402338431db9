#include "comm/mpi/attendance.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <fstream>

namespace kvmesh {
namespace {

// The job's id becomes part of a file name. Without one the ranks have their parent in common.
std::string file_name(const Launch& launch) {
  std::string job = launch.job.empty() ? std::to_string(::getppid()) : launch.job;
  std::ranges::replace_if(
      job, [](unsigned char c) { return std::isalnum(c) == 0 && c != '.'; }, '_');
  return fmt::format("/dev/shm/kvmesh-{}-{}", ::getuid(), job.substr(0, 100));
}

// /proc/PID/stat is "PID (name) STATE ...", where the name may hold anything.
bool is_stopped(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const std::size_t end = text.rfind(')');
  return end != std::string::npos && end + 2 < text.size() &&
         (text[end + 2] == 'T' || text[end + 2] == 't');
}

struct flock byte_lock(short type, int position) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = position;
  lock.l_len = 1;
  return lock;
}

}  // namespace

Attendance::Attendance(const Launch& launch)
    : rank_(launch.rank),
      size_(launch.size),
      local_size_(launch.local_size.value_or(0)),
      path_(file_name(launch)),
      file_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)) {}

void Attendance::come(Point point) {
  struct flock lock = byte_lock(F_WRLCK, static_cast<int>(point) * size_ + rank_);
  if (file_.get() >= 0) ::fcntl(file_.get(), F_SETLK, &lock);
}

std::vector<Rank> Attendance::missing(Point point) const {
  std::vector<Rank> ranks;
  for (int r = 0; r < size_; ++r) {
    if (r != rank_ && !is_here(point, r)) ranks.push_back(Rank{r});
  }
  return ranks;
}

std::string Attendance::note(Point point) const {
  if (local_size_ == size_) return {};
  const int here = size_ - static_cast<int>(missing(point).size());
  return fmt::format(" (of the {} ranks, {} are seen on this machine)", size_, here);
}

void Attendance::remove_name() {
  if (file_.get() >= 0) ::unlink(path_.c_str());
}

bool Attendance::is_here(Point point, int rank) const {
  struct flock lock = byte_lock(F_WRLCK, static_cast<int>(point) * size_ + rank);
  if (file_.get() < 0 || ::fcntl(file_.get(), F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) {
    return false;
  }
  return !is_stopped(lock.l_pid);
}

}  // namespace kvmesh
