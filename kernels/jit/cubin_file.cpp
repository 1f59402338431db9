#include "kernels/jit/cubin_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <string_view>
#include <system_error>

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;

/// The file begins with this; then the log, then the machine code.
///
///   0        8           24          32           40          56
///   | magic  | key       | log bytes | code bytes | checksum  |
///
/// The checksum covers all other fields and all bytes after them. Numbers are in the machine's byte
/// order: on another kind of machine the checksum does not match.
struct Header {
  std::array<char, 8> magic{'K', 'V', 'M', 'C', 'U', 'B', '0', '1'};
  std::array<std::uint64_t, 2> key{};
  std::uint64_t log_bytes = 0;
  std::uint64_t code_bytes = 0;
  std::array<std::uint64_t, 2> checksum{};  ///< zero while the sum is taken
};
static_assert(sizeof(Header) == 56);

std::array<std::uint64_t, 2> checksum_of(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

void put_header(std::vector<std::byte>& file, const Header& header) {
  std::memcpy(file.data(), &header, sizeof header);
}

bool write_all(int file, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return true;
}

/// Returns a name that no other thread, process or host uses that shares the directory.
fs::path temporary_beside(const fs::path& path) {
  std::random_device random;
  return path.string() +
         fmt::format(".{}-{:08x}{:08x}{}", ::getpid(), random(), random(), kTemporarySuffix);
}

}  // namespace

std::vector<std::byte> pack(const ProgramKey& key, const Cubin& cubin) {
  Header header;
  header.key = key.bits;
  header.log_bytes = cubin.log.size();
  header.code_bytes = cubin.bytes.size();

  std::vector<std::byte> file(sizeof header + cubin.log.size() + cubin.bytes.size());
  std::byte* const log = file.data() + sizeof header;
  std::copy_n(reinterpret_cast<const std::byte*>(cubin.log.data()), cubin.log.size(), log);
  std::copy(cubin.bytes.begin(), cubin.bytes.end(), log + cubin.log.size());
  put_header(file, header);
  header.checksum = checksum_of(file);
  put_header(file, header);
  return file;
}

std::optional<Cubin> unpack(const ProgramKey& key, std::span<const std::byte> file) {
  Header header;
  if (file.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, file.data(), sizeof header);
  const std::size_t rest = file.size() - sizeof header;
  if (header.magic != Header{}.magic || header.key != key.bits || header.log_bytes > rest ||
      header.code_bytes != rest - header.log_bytes) {
    return std::nullopt;
  }
  const auto* log = reinterpret_cast<const char*>(file.data() + sizeof header);
  const auto code = file.subspan(sizeof header + header.log_bytes);
  Cubin cubin{{code.begin(), code.end()}, {log, header.log_bytes}};
  const std::vector<std::byte> as_written = pack(key, cubin);
  if (std::memcmp(as_written.data(), file.data(), file.size()) != 0) return std::nullopt;
  return cubin;
}

std::optional<std::vector<std::byte>> read_file(const fs::path& path) {
  std::error_code failed;
  if (!fs::is_regular_file(path, failed)) return std::nullopt;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file.tellg();  // of the open file: its name may have been removed
  if (size < 0) return std::nullopt;
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(bytes.data()), size);
  bytes.resize(static_cast<std::size_t>(file.gcount()));
  return bytes;
}

bool write_file_atomically(const fs::path& path, std::span<const std::byte> bytes) {
  const fs::path temporary = temporary_beside(path);
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file < 0) return false;
  // Synced before the rename: otherwise a crash of the machine could leave the name without the
  // bytes.
  const bool is_written = write_all(file, bytes) && ::fsync(file) == 0;
  const bool is_closed = ::close(file) == 0;
  if (is_written && is_closed && std::rename(temporary.c_str(), path.c_str()) == 0) return true;
  ::unlink(temporary.c_str());
  return false;
}

}  // namespace kvmesh::jit
