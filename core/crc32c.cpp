#include "core/crc32c.hpp"

#include <array>
#include <cstring>

namespace kvmesh {
namespace {

constexpr std::uint32_t kPolynomial = 0x82F6'3B78;  // bits reversed

// Tables of slicing by 8 (Kounavis and Berry): table k maps a byte to its part of the checksum k
// bytes later.
constexpr auto kTables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? kPolynomial : 0);
    tables[0][byte] = value;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t byte = 0; byte < 256; ++byte)
      tables[k][byte] = tables[k - 1][byte] >> 8 ^ tables[0][tables[k - 1][byte] & 0xFF];
  return tables;
}();

std::uint32_t step(std::uint32_t value, std::byte byte) {
  return value >> 8 ^ kTables[0][(value ^ static_cast<std::uint32_t>(byte)) & 0xFF];
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::span<const std::byte> bytes,
                                                               std::uint32_t value) {
  std::uint64_t wide = value;
  std::size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data() + at, 8);
    wide = __builtin_ia32_crc32di(wide, word);
  }
  value = static_cast<std::uint32_t>(wide);
  for (; at < bytes.size(); ++at) value = step(value, bytes[at]);
  return value;
}
#endif

}  // namespace

std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t before) {
  std::uint32_t value = ~before;
  std::size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    std::array<std::uint8_t, 8> b;
    std::memcpy(b.data(), bytes.data() + at, 8);
    for (std::size_t i = 0; i < 4; ++i) b[i] ^= static_cast<std::uint8_t>(value >> 8 * i);
    value = 0;
    for (std::size_t i = 0; i < 8; ++i) value ^= kTables[7 - i][b[i]];
  }
  for (; at < bytes.size(); ++at) value = step(value, bytes[at]);
  return ~value;
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return ~by_instruction(bytes, ~before);
#endif
  return crc32c_portable(bytes, before);
}

}  // namespace kvmesh
