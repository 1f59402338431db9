// Ends of sequence streams: memory, descriptors, files.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/aligned_buffer.hpp"
#include "core/posix/descriptor.hpp"
#include "kvmesh/sequence_stream.hpp"

namespace kvmesh {
namespace {

using Reason = StreamError::Reason;

[[noreturn]] void fail(const std::string& what, int error) {
  throw StreamError(Reason::kIo,
                    fmt::format("sequence stream: {}: {}", what, std::strerror(error)));
}

[[noreturn]] void truncated() {
  throw StreamError(Reason::kTruncated, "sequence stream: it ends too early");
}

void write_all(int descriptor, std::span<const std::byte> bytes, const std::string& what) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(what, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void read_all(int descriptor, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = ::read(descriptor, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("cannot be read", errno);
    if (got == 0) truncated();
    bytes = bytes.subspan(static_cast<std::size_t>(got));
  }
}

/// Returns where a file at `path` is to be: symbolic links are followed, also to what is missing.
std::string destination(const std::string& path) {
  namespace fs = std::filesystem;
  try {
    const fs::file_status there = fs::status(path);
    if (fs::exists(there) && !fs::is_regular_file(there)) {
      throw StreamError(Reason::kIo, fmt::format("sequence stream: {} is {}, not a file", path,
                                                 fs::is_directory(there) ? "a folder"
                                                 : fs::is_fifo(there)    ? "a pipe"
                                                 : fs::is_socket(there)  ? "a socket"
                                                                         : "a device"));
    }
    fs::path end = path;
    while (fs::is_symlink(end)) end = end.parent_path() / fs::read_symlink(end);
    return end;
  } catch (const fs::filesystem_error& error) {
    fail(path + " cannot be made", error.code().value());
  }
}

}  // namespace

/// The bytes so far, in memory that is not written before: std::vector would write zeros, into
/// small pages.
class MemorySink::Memory {
 public:
  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(buffer_.data()), size_}; }
  void reserve(std::size_t size_bytes) {
    if (size_bytes <= buffer_.size_bytes()) return;
    AlignedBuffer larger(size_bytes);
    std::ranges::copy(bytes(), static_cast<std::byte*>(larger.data()));
    buffer_ = std::move(larger);
  }
  std::span<std::byte> add(std::size_t size_bytes) {
    const std::size_t before = std::exchange(size_, size_ + size_bytes);
    return bytes().subspan(before);
  }
  std::size_t capacity() const { return buffer_.size_bytes(); }

 private:
  AlignedBuffer buffer_;
  std::size_t size_ = 0;
};

MemorySink::MemorySink() : memory_(std::make_unique<Memory>()) {}
MemorySink::~MemorySink() = default;

void MemorySink::expect(std::size_t size_bytes) { memory_->reserve(bytes().size() + size_bytes); }

std::span<std::byte> MemorySink::room(std::size_t size_bytes) {
  const std::size_t needed = bytes().size() + size_bytes;
  if (needed > memory_->capacity()) memory_->reserve(std::max(needed, 2 * memory_->capacity()));
  return memory_->add(size_bytes);
}

void MemorySink::write(std::span<const std::byte> bytes) {
  std::ranges::copy(bytes, room(bytes.size()).begin());
}

std::span<const std::byte> MemorySink::bytes() const { return memory_->bytes(); }

void MemorySource::read(std::span<std::byte> bytes) {
  std::ranges::copy(view(bytes.size()), bytes.begin());
}

std::span<const std::byte> MemorySource::view(std::size_t size_bytes) {
  if (size_bytes > bytes_.size()) truncated();
  const std::span<const std::byte> bytes = bytes_.first(size_bytes);
  bytes_ = bytes_.subspan(size_bytes);
  return bytes;
}

void DescriptorSink::write(std::span<const std::byte> bytes) {
  write_all(descriptor_, bytes, "cannot be written");
}
void DescriptorSource::read(std::span<std::byte> bytes) { read_all(descriptor_, bytes); }

/// The file under its other name, which is removed unless the file has got its own.
struct FileSink::Part {
  explicit Part(std::string other_name)
      : path(std::move(other_name)),
        file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
    if (file.get() < 0) fail(path + " cannot be made", errno);
  }
  ~Part() {
    if (!path.empty()) ::unlink(path.c_str());
  }
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  std::string path;
  Descriptor file;
};

FileSink::FileSink(const std::string& path)
    : path_(destination(path)),
      part_(std::make_unique<Part>(fmt::format("{}.part.{}", path_, ::getpid()))) {}
FileSink::~FileSink() = default;

// The disk writes what there is while the caller gathers more, instead of all of it in finish(),
// which waits for the disk and gets its errors.
void FileSink::write(std::span<const std::byte> bytes) {
  constexpr off_t kPiece = 8 << 20;
  const int file = part_->file.get();
  write_all(file, bytes, part_->path + " cannot be written");
  const off_t end = ::lseek(file, 0, SEEK_CUR);
  const off_t begin = end - static_cast<off_t>(bytes.size());
  const off_t first = begin / kPiece * kPiece, last = end / kPiece * kPiece;
  if (last > first) ::sync_file_range(file, first, last - first, SYNC_FILE_RANGE_WRITE);
}

void FileSink::finish() {
  if (::fsync(part_->file.get()) != 0) fail(part_->path + " cannot be written", errno);
  if (::close(part_->file.release()) != 0 || std::rename(part_->path.c_str(), path_.c_str()) != 0) {
    fail(path_ + " cannot be written", errno);
  }
  part_->path.clear();
}

class FileSource::File : public Descriptor {
 public:
  using Descriptor::Descriptor;
};

FileSource::FileSource(const std::string& path)
    : file_(std::make_unique<File>(::open(path.c_str(), O_RDONLY | O_CLOEXEC))) {
  if (file_->get() < 0) fail(path + " cannot be opened", errno);
}
FileSource::~FileSource() = default;
void FileSource::read(std::span<std::byte> bytes) { read_all(file_->get(), bytes); }

void FileSource::finish() {
  const int file = file_->get();
  struct stat status {};
  if (::fstat(file, &status) != 0) fail("cannot be read", errno);
  if (!S_ISREG(status.st_mode)) return;
  const auto left = status.st_size - ::lseek(file, 0, SEEK_CUR);
  if (left <= 0) return;
  throw StreamError(Reason::kCorrupt,
                    fmt::format("sequence stream: the file has {} bytes behind its end", left));
}

}  // namespace kvmesh
