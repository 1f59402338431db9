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
// A checksum of three pieces at once, since the instruction takes three cycles and one can start in
// each. Checksums are linear: what a piece adds to a state is what it adds to 0, and the state
// itself moves on over as many zero bytes.
constexpr std::size_t kPieceBytes = 1024;

/// Moves a state on over kPieceBytes zero bytes.
class PastAPiece {
 public:
  PastAPiece() {
    for (int bit = 0; bit < 32; ++bit) {
      std::uint32_t moved = 1u << bit;
      for (std::size_t i = 0; i < kPieceBytes; ++i) moved = step(moved, std::byte{0});
      auto& of_byte = tables_[static_cast<std::size_t>(bit / 8)];
      for (std::uint32_t byte = 0; byte < 256; ++byte)
        if (byte >> bit % 8 & 1) of_byte[byte] ^= moved;
    }
  }
  std::uint32_t operator()(std::uint32_t value) const {
    return tables_[0][value & 0xFF] ^ tables_[1][value >> 8 & 0xFF] ^
           tables_[2][value >> 16 & 0xFF] ^ tables_[3][value >> 24];
  }

 private:
  std::array<std::array<std::uint32_t, 256>, 4> tables_{};
};

std::uint64_t word_at(const std::byte* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

__attribute__((target("sse4.2"))) std::uint32_t by_instruction(std::span<const std::byte> bytes,
                                                               std::uint32_t value) {
  static const PastAPiece past_a_piece;
  for (; bytes.size() >= 3 * kPieceBytes; bytes = bytes.subspan(3 * kPieceBytes)) {
    std::uint64_t first = value, second = 0, third = 0;
    for (std::size_t at = 0; at < kPieceBytes; at += 8) {
      first = __builtin_ia32_crc32di(first, word_at(bytes.data() + at));
      second = __builtin_ia32_crc32di(second, word_at(bytes.data() + kPieceBytes + at));
      third = __builtin_ia32_crc32di(third, word_at(bytes.data() + 2 * kPieceBytes + at));
    }
    const std::uint32_t two =
        past_a_piece(static_cast<std::uint32_t>(first)) ^ static_cast<std::uint32_t>(second);
    value = past_a_piece(two) ^ static_cast<std::uint32_t>(third);
  }
  std::uint64_t wide = value;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8))
    wide = __builtin_ia32_crc32di(wide, word_at(bytes.data()));
  value = static_cast<std::uint32_t>(wide);
  for (const std::byte byte : bytes) value = step(value, byte);
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
