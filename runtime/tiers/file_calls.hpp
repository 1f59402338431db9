// The system calls that page files need, as an interface, so that tests can make each of them fail.
#pragma once

#include <sys/types.h>

#include <cstddef>

namespace kvmesh {

/// Each call does what POSIX says, errno included.
class FileCalls {
 public:
  virtual ~FileCalls() = default;
  virtual int open(const char* path, int flags);
  virtual ssize_t read(int file, void* to, std::size_t size_bytes);
  virtual ssize_t write(int file, const void* from, std::size_t size_bytes);
  virtual int truncate(int file, off_t size_bytes);
  virtual int sync(int file);
  virtual int close(int file);
  virtual int rename(const char* from, const char* to);
  virtual int remove(const char* path);
  /// Sets the file's time to the present.
  virtual int touch(const char* path);
  /// Makes the folder and those above it. Returns 0 also if it exists already.
  virtual int make_folder(const char* path);
};

}  // namespace kvmesh
