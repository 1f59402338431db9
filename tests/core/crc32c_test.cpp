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

// The vectors of RFC 3720, B.4.
TEST(Crc32c, HasThePublishedValues) {
  std::vector<std::byte> bytes(32);
  for (const auto sum : {&crc32c, &crc32c_portable}) {
    EXPECT_EQ(sum(bytes_of("123456789"), 0), 0xE306'9283);
    EXPECT_EQ(sum({}, 0), 0u);
    std::memset(bytes.data(), 0, 32);
    EXPECT_EQ(sum(bytes, 0), 0x8A91'36AA);
    std::memset(bytes.data(), 0xFF, 32);
    EXPECT_EQ(sum(bytes, 0), 0x62A8'AB43);
    for (std::size_t i = 0; i < 32; ++i) bytes[i] = static_cast<std::byte>(i);
    EXPECT_EQ(sum(bytes, 0), 0x46DD'794E);
  }
}

TEST(Crc32c, GoesOnFromAnyPiece) {
  std::mt19937 random(3);
  std::vector<std::byte> bytes(10'007);  // more than three times what is summed at once
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const std::uint32_t whole = crc32c(bytes);
  EXPECT_EQ(crc32c_portable(bytes), whole);
  const std::span<const std::byte> all(bytes);
  for (std::size_t cut = 0; cut <= bytes.size(); cut += cut < 200 ? 1 : 97) {
    EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), whole);
    EXPECT_EQ(crc32c_portable(all.subspan(cut), crc32c(all.first(cut))), whole);
  }
}

}  // namespace
}  // namespace kvmesh
