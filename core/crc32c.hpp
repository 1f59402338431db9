// CRC-32C (Castagnoli), the checksum of files and streams.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvmesh {

/// Returns the checksum of the bytes; of several pieces, if each call gets the result of the one
/// before. The value for "123456789" is 0xE3069283.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0);

/// Joins the checksums of pieces that were summed in any order.
class Crc32cJoin {
 public:
  /// Makes tables, which takes microseconds.
  explicit Crc32cJoin(std::size_t second_bytes);
  /// Returns the checksum of two pieces, one after the other, from those of each. The second has
  /// `second_bytes`.
  std::uint32_t operator()(std::uint32_t first, std::uint32_t second) const {
    return tables_[0][first & 0xFF] ^ tables_[1][first >> 8 & 0xFF] ^
           tables_[2][first >> 16 & 0xFF] ^ tables_[3][first >> 24] ^ second;
  }

 private:
  std::array<std::array<std::uint32_t, 256>, 4> tables_{};
};

}  // namespace kvmesh
