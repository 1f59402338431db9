// The properties of characters that are needed to split text into words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvmesh::engine {

/// A code point and its number of bytes. A byte that starts no valid sequence is returned as
/// kInvalidCode with size 1, so every text can be read to its end.
struct CodePoint {
  std::uint32_t code = 0;
  int size = 0;
};
inline constexpr std::uint32_t kInvalidCode = 0xFFFF'FFFF;

/// Returns the code point at the start of `text`. REQUIRES: `text` is not empty.
CodePoint decode_utf8(std::string_view text);

void append_utf8(std::string& text, std::uint32_t code);

/// Returns the length of the longest prefix of `text` that does not end inside a multi-byte
/// sequence.
std::size_t complete_utf8_prefix(std::string_view text);

enum class CodeClass : std::uint8_t { kLetter, kNumber, kSpace, kOther };

/// General categories L* and N*, and the property White_Space, of Unicode 14. Later additions and
/// invalid bytes are kOther.
CodeClass classify(std::uint32_t code);

}  // namespace kvmesh::engine
