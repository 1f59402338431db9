#include "core/crc32c.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string_view>
#include <vector>

namespace kvmesh {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// The checksum by its definition, a bit at a time.
std::uint32_t by_bits(std::span<const std::byte> bytes) {
  std::uint32_t value = 0xFFFF'FFFF;
  for (const std::byte byte : bytes) {
    value ^= static_cast<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0x82F6'3B78 : 0);
  }
  return ~value;
}

std::vector<std::byte> random_bytes(std::size_t size) {
  std::mt19937 random(3);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// The vectors of RFC 3720, B.4.
TEST(Crc32c, HasThePublishedValues) {
  std::vector<std::byte> bytes(32);
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE306'9283);
  EXPECT_EQ(crc32c({}), 0u);
  std::memset(bytes.data(), 0, 32);
  EXPECT_EQ(crc32c(bytes), 0x8A91'36AA);
  std::memset(bytes.data(), 0xFF, 32);
  EXPECT_EQ(crc32c(bytes), 0x62A8'AB43);
  for (std::size_t i = 0; i < 32; ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(bytes), 0x46DD'794E);
}

TEST(Crc32c, GoesOnFromAnyPiece) {
  const std::vector<std::byte> bytes = random_bytes(10'007);
  const std::uint32_t whole = crc32c(bytes);
  EXPECT_EQ(by_bits(bytes), whole);
  const std::span<const std::byte> all(bytes);
  for (std::size_t cut = 0; cut <= bytes.size(); cut += cut < 200 ? 1 : 97)
    EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), whole);
}

TEST(Crc32c, OfPiecesIsJoined) {
  const std::vector<std::byte> bytes = random_bytes(5'000);
  const std::span<const std::byte> all(bytes);
  for (const std::size_t second : {0, 1, 7, 64, 256, 4096, 5'000}) {
    const std::size_t cut = bytes.size() - second;
    const Crc32cJoin join(second);
    EXPECT_EQ(join(crc32c(all.first(cut)), crc32c(all.subspan(cut))), crc32c(all)) << second;
  }
}

}  // namespace
}  // namespace kvmesh
