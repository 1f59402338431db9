#include "runtime/tiers/page_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <vector>

#include "core/crc32c.hpp"

namespace kvmesh {
namespace {

constexpr char kMagic[9] = "KVMPAGE\n";
constexpr std::size_t kCrcAt = 12;

using Header = std::array<std::byte, kPageFileHeader>;

template <class Number>
void put(Header& header, std::size_t at, Number value) {
  for (std::size_t i = 0; i < sizeof value; ++i)
    header[at + i] = static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i));
}

Header header_of(const PageFileShape& shape, const PageHash& hash) {
  Header header{};
  std::memcpy(header.data(), kMagic, 8);
  put(header, 8, kPageFileVersion);
  put(header, 10, static_cast<std::uint8_t>(shape.dtype));
  put(header, 11, shape.group);
  put(header, 16, shape.first_layer);
  put(header, 18, shape.layers);
  put(header, 20, shape.first_head);
  put(header, 22, shape.heads);
  put(header, 24, shape.page_size);
  put(header, 26, shape.planes);
  put(header, 28, shape.row_bytes);
  std::memcpy(header.data() + 32, hash.bytes.data(), hash.bytes.size());
  return header;
}

std::array<std::byte, 4> checksum(std::span<const std::byte> file) {
  const std::uint32_t crc = crc32c(file.subspan(kCrcAt + 4), crc32c(file.first(kCrcAt)));
  std::array<std::byte, 4> bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(crc >> (8 * i));
  return bytes;
}

FileFault fault_of(int error) {
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return FileFault::kFull;
  if (error == EROFS || error == EACCES || error == EPERM) return FileFault::kDenied;
  return error == ENOENT || error == ENOTDIR ? FileFault::kMissing : FileFault::kIo;
}

/// Opens a file around the system's cache if it can.
int open_file(FileCalls& calls, const std::string& path, int flags, bool direct) {
  if (direct) {
    const int file = calls.open(path.c_str(), flags | O_DIRECT);
    if (file >= 0 || errno != EINVAL) return file;
  }
  return calls.open(path.c_str(), flags);
}

FileFault write_all(FileCalls& calls, int file, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = calls.write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return fault_of(errno);
    if (written == 0) return FileFault::kFull;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return FileFault::kNone;
}

/// Writes `size` bytes, in whole blocks if the file is opened around the cache.
FileFault fill(FileCalls& calls, int file, std::span<const std::byte> buffer, std::size_t size,
               const PageFileWay& way) {
  const std::size_t bytes = way.direct ? file_buffer_bytes(size) : size;
  FileFault fault = write_all(calls, file, buffer.first(bytes));
  if (fault == FileFault::kNone && bytes != size &&
      calls.truncate(file, static_cast<off_t>(size)) != 0)
    fault = fault_of(errno);
  if (fault == FileFault::kNone && way.durable && calls.sync(file) != 0) fault = fault_of(errno);
  if (calls.close(file) != 0 && fault == FileFault::kNone) fault = fault_of(errno);
  return fault;
}

FileFault sync_folder(FileCalls& calls, const std::string& folder) {
  const int file = calls.open(folder.c_str(), O_RDONLY | O_DIRECTORY);
  if (file < 0) return fault_of(errno);
  FileFault fault = calls.sync(file) == 0 ? FileFault::kNone : fault_of(errno);
  if (calls.close(file) != 0 && fault == FileFault::kNone) fault = fault_of(errno);
  return fault;
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// A name that no other writer uses: PATH.<process>.<number>@<host>.tmp
std::string temporary_name(const std::string& path) {
  static std::atomic<std::uint64_t> last{0};
  return fmt::format("{}.{}.{}@{}.tmp", path, ::getpid(), ++last, host_name());
}

}  // namespace

FileFault make_page_folder(FileCalls& calls, const std::string& folder, const PageFileWay& way) {
  namespace fs = std::filesystem;
  std::vector<std::string> parents;  // of the folders that are missing
  std::error_code unknown;
  for (fs::path at = folder; way.durable && at.has_relative_path() && !fs::exists(at, unknown);
       at = at.parent_path())
    parents.push_back(at.has_parent_path() ? at.parent_path().string() : ".");
  if (calls.make_folder(folder.c_str()) != 0) return fault_of(errno);
  for (const std::string& parent : parents) {
    if (const FileFault fault = sync_folder(calls, parent); fault != FileFault::kNone) return fault;
  }
  return FileFault::kNone;
}

FileFault write_page_file(FileCalls& calls, const std::string& path, const PageFileShape& shape,
                          const PageHash& hash, std::span<std::byte> buffer,
                          const PageFileWay& way) {
  const std::span<std::byte> file = buffer.first(shape.file_bytes());
  const Header header = header_of(shape, hash);
  std::memcpy(file.data(), header.data(), header.size());
  const auto crc = checksum(file);
  std::memcpy(file.data() + kCrcAt, crc.data(), crc.size());

  const std::string folder = path.substr(0, path.rfind('/')), name = temporary_name(path);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL;
  int opened = open_file(calls, name, kFlags, way.direct);
  if (opened < 0 && errno == ENOENT) {
    const FileFault fault = make_page_folder(calls, folder, way);
    if (fault != FileFault::kNone) return fault;
    opened = open_file(calls, name, kFlags, way.direct);
  }
  if (opened < 0) return fault_of(errno);
  FileFault fault = fill(calls, opened, buffer, file.size(), way);
  if (fault == FileFault::kNone && calls.rename(name.c_str(), path.c_str()) != 0)
    fault = fault_of(errno);
  if (fault != FileFault::kNone) {
    calls.remove(name.c_str());
    return fault;
  }
  return way.durable ? sync_folder(calls, folder) : FileFault::kNone;
}

FileFault read_page_file(FileCalls& calls, const std::string& path, const PageFileShape& shape,
                         const PageHash& hash, std::span<std::byte> buffer,
                         const PageFileWay& way) {
  // Without O_NONBLOCK, opening a pipe in place of the file would wait for a writer.
  const int file = open_file(calls, path, O_RDONLY | O_NONBLOCK, way.direct);
  if (file < 0) return fault_of(errno);
  std::size_t size = 0;
  FileFault fault = FileFault::kNone;
  while (size < buffer.size()) {
    const ssize_t got = calls.read(file, buffer.data() + size, buffer.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fault = fault_of(errno);
    if (got <= 0) break;
    size += static_cast<std::size_t>(got);
    if (way.direct && size % kFileBlock != 0) break;  // the end: the next place is not aligned
  }
  calls.close(file);
  return fault != FileFault::kNone ? fault : check_page_file(buffer.first(size), shape, hash);
}

FileFault remove_page_file(FileCalls& calls, const std::string& path) {
  const FileFault fault = calls.remove(path.c_str()) == 0 ? FileFault::kNone : fault_of(errno);
  return fault == FileFault::kMissing ? FileFault::kNone : fault;
}

bool is_left_over(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (path.extension() != ".tmp") return false;
  const std::string stem = path.stem().string();
  const std::size_t at = stem.find(".page."), host = stem.find('@');
  if (at == std::string::npos || host == std::string::npos) return false;
  if (stem.substr(host + 1) == host_name()) {
    const int process = std::atoi(stem.c_str() + at + std::strlen(".page."));
    return process > 0 && ::kill(process, 0) != 0 && errno == ESRCH;
  }
  std::error_code gone;
  const auto age = fs::file_time_type::clock::now() - fs::last_write_time(path, gone);
  return !gone && age > std::chrono::hours(24);
}

FileFault check_page_file(std::span<const std::byte> file, const PageFileShape& shape,
                          const PageHash& hash) {
  if (file.size() < kPageFileHeader) return FileFault::kTruncated;
  const Header expected = header_of(shape, hash);
  const auto differs = [&](std::size_t first, std::size_t count) {
    return std::memcmp(file.data() + first, expected.data() + first, count) != 0;
  };
  if (differs(0, 10)) return FileFault::kForeign;
  const auto crc = checksum(file.first(std::min(file.size(), shape.file_bytes())));
  const bool sound = std::memcmp(file.data() + kCrcAt, crc.data(), crc.size()) == 0;
  if (differs(10, 2) || differs(16, 16)) return FileFault::kForeign;
  if (file.size() < shape.file_bytes()) return FileFault::kTruncated;
  return file.size() > shape.file_bytes() || !sound || differs(32, 32) ? FileFault::kCorrupt
                                                                       : FileFault::kNone;
}

}  // namespace kvmesh
