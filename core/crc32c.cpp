#include "core/crc32c.hpp"

#include <isa-l/crc.h>

#include <algorithm>

namespace kvmesh {
namespace {

// Polynomials over bits, modulo that of the checksum. The highest bit is the factor of x^0.
constexpr std::uint32_t kPolynomial = 0x82F6'3B78;
constexpr std::uint32_t kOne = 1u << 31, kByte = kOne >> 8;  // x^0, x^8

constexpr std::uint32_t product(std::uint32_t a, std::uint32_t b) {
  std::uint32_t sum = 0;
  for (std::uint32_t power = kOne; power != 0; power >>= 1) {
    if (a & power) sum ^= b;
    b = b >> 1 ^ (b & 1 ? kPolynomial : 0);
  }
  return sum;
}

/// Returns x to the power of 8 * bytes.
constexpr std::uint32_t past(std::size_t bytes) {
  std::uint32_t result = kOne;
  for (std::uint32_t square = kByte; bytes != 0; bytes >>= 1, square = product(square, square))
    if (bytes & 1) result = product(result, square);
  return result;
}

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
  constexpr std::size_t kMost = std::size_t{1} << 30;  // the library counts in int
  std::uint32_t value = ~before;
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kMost));
    // Only read, though the parameter is not const.
    auto* const data =
        const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(piece.data()));
    value = crc32_iscsi(data, static_cast<int>(piece.size()), value);
    bytes = bytes.subspan(piece.size());
  }
  return ~value;
}

// Checksums are linear: the first piece's is multiplied by x^8 for each byte of the second, and the
// inversions at both ends of each cancel out. The product is the sum of those of four bytes.
Crc32cJoin::Crc32cJoin(std::size_t second_bytes) {
  const std::uint32_t factor = past(second_bytes);
  for (std::uint32_t table = 0; table < 4; ++table) {
    auto& of_byte = tables_[table];
    for (std::uint32_t byte = 1; byte < 256; ++byte) {
      const std::uint32_t rest = byte & (byte - 1), lowest = byte ^ rest;
      of_byte[byte] =
          rest == 0 ? product(lowest << 8 * table, factor) : of_byte[rest] ^ of_byte[lowest];
    }
  }
}

}  // namespace kvmesh
