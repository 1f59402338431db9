#include "kernels/jit/cubin_file.hpp"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

namespace kvmesh::jit {
namespace {

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

}  // namespace kvmesh::jit
