// A lock among processes, for work that one of them does for all.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>

#include "core/posix/descriptor.hpp"

namespace kvmesh::jit {

/// Holds an advisory lock (flock) on a file, which it makes, and removes at the end. The system
/// releases the lock of a process that dies; the file that remains then does no harm.
///
/// The lock saves work and protects no data: as the file is removed while others wait for it, two
/// processes may hold "the" lock at once, one on the old file and one on a new one.
class FileLock {
 public:
  /// Waits for the lock until `deadline`. Returns nothing if the deadline passes, or where files
  /// cannot be locked.
  static std::optional<FileLock> acquire(const std::filesystem::path& path,
                                         std::chrono::milliseconds deadline);
  ~FileLock();
  FileLock(FileLock&&) noexcept = default;
  FileLock& operator=(FileLock&&) = delete;

 private:
  FileLock(std::filesystem::path path, Descriptor file)
      : path_(std::move(path)), file_(std::move(file)) {}

  std::filesystem::path path_;
  Descriptor file_;
};

}  // namespace kvmesh::jit
