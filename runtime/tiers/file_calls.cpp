#include "runtime/tiers/file_calls.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

namespace kvmesh {

int FileCalls::open(const char* path, int flags) { return ::open(path, flags | O_CLOEXEC, 0644); }
ssize_t FileCalls::read(int file, void* to, std::size_t size_bytes) {
  return ::read(file, to, size_bytes);
}
ssize_t FileCalls::write(int file, const void* from, std::size_t size_bytes) {
  return ::write(file, from, size_bytes);
}
int FileCalls::truncate(int file, off_t size_bytes) { return ::ftruncate(file, size_bytes); }
int FileCalls::sync(int file) { return ::fdatasync(file); }
int FileCalls::close(int file) { return ::close(file); }
int FileCalls::rename(const char* from, const char* to) { return ::rename(from, to); }
int FileCalls::remove(const char* path) { return ::unlink(path); }
int FileCalls::touch(const char* path) { return ::utimensat(AT_FDCWD, path, nullptr, 0); }
int FileCalls::make_folder(const char* path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  errno = error.value();
  return error ? -1 : 0;
}

}  // namespace kvmesh
