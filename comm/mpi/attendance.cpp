#include "comm/mpi/attendance.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <filesystem>
#include <fstream>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFolder = "/dev/shm";
// A file without a lock belongs to no job, unless a rank is about to lock it.
constexpr std::chrono::hours kAbandonedAfter{1};

std::string prefix() { return fmt::format("kvmesh-{}-", ::getuid()); }

// The job's id becomes part of a file name. Without one the ranks have their parent in common.
std::string file_name(const Launch& launch) {
  std::string job = launch.job.empty() ? std::to_string(::getppid()) : launch.job;
  std::ranges::replace_if(
      job, [](unsigned char c) { return std::isalnum(c) == 0 && c != '.'; }, '_');
  return fmt::format("{}/{}{}", kFolder, prefix(), job.substr(0, 100));
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

// Returns true also if the file cannot be read. The locks of this process do not count.
bool is_locked(const fs::path& path) {
  const Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct flock any = byte_lock(F_WRLCK, 0);
  any.l_len = 0;  // to the end, wherever it is
  return file.get() < 0 || ::fcntl(file.get(), F_GETLK, &any) != 0 || any.l_type != F_UNLCK;
}

// Removes the files of jobs that were killed while they started. `own` may be one that is used
// again.
void remove_abandoned(const fs::path& own) {
  std::error_code ignored;
  for (fs::directory_iterator entry(kFolder, ignored), end; entry != end;
       entry.increment(ignored)) {
    const fs::path& path = entry->path();
    if (path == own || !path.filename().string().starts_with(prefix())) continue;
    std::error_code gone;
    const auto made = fs::last_write_time(path, gone);
    if (gone || made > fs::file_time_type::clock::now() - kAbandonedAfter) continue;
    if (!is_locked(path)) fs::remove(path, gone);
  }
}

}  // namespace

Attendance::Attendance(const Launch& launch)
    : rank_(launch.rank),
      size_(launch.size),
      local_size_(launch.local_size.value_or(0)),
      path_(file_name(launch)),
      file_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)) {
  const bool is_first_of_machine = launch.local_rank.value_or(launch.rank) == 0;
  if (is_first_of_machine) remove_abandoned(path_);
}

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
