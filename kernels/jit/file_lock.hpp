// A lock among processes, for work that one of them should do for all.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>

namespace kvmesh::jit {

/// Holds an advisory lock (flock) on a file, which it makes, and removes at the end. The system
/// ends the lock of a process that dies; the file that stays then is in nobody's way.
///
/// It saves work and guards nothing: as the file is removed while others wait for it, two may hold
/// "the" lock at once, one on the old file and one on a new one.
class FileLock {
 public:
  /// Waits for it no longer than `deadline`. Nothing if it does not come, or where files cannot be
  /// locked.
  static std::optional<FileLock> acquire(const std::filesystem::path& path,
                                         std::chrono::milliseconds deadline);
  ~FileLock();
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;

 private:
  FileLock(std::filesystem::path path, int file) : path_(std::move(path)), file_(file) {}

  std::filesystem::path path_;
  int file_;
};

}  // namespace kvmesh::jit
