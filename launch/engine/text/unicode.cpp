#include "launch/engine/text/unicode.hpp"

#include <algorithm>
#include <iterator>
#include <span>

#include "launch/engine/text/unicode_ranges.hpp"

namespace kvmesh::engine {
namespace {

bool contains(std::span<const CodeRange> ranges, std::uint32_t code) {
  const auto after = std::ranges::upper_bound(ranges, code, {}, &CodeRange::first);
  return after != ranges.begin() && code <= std::prev(after)->last;
}

bool is_space(std::uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

/// Returns the length of the sequence that starts with `lead`; 0 if none does.
int sequence_size(std::uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

bool is_continuation(char byte) { return (static_cast<std::uint8_t>(byte) & 0xC0) == 0x80; }

}  // namespace

CodePoint decode_utf8(std::string_view text) {
  constexpr CodePoint kInvalid{kInvalidCode, 1};
  const auto lead = static_cast<std::uint8_t>(text[0]);
  const int size = sequence_size(lead);
  if (size == 1) return {lead, 1};
  if (size == 0 || text.size() < static_cast<std::size_t>(size)) return kInvalid;
  std::uint32_t code = lead & (0x7Fu >> size);
  for (char byte : text.substr(1, static_cast<std::size_t>(size) - 1)) {
    if (!is_continuation(byte)) return kInvalid;
    code = code << 6 | (static_cast<std::uint8_t>(byte) & 0x3Fu);
  }
  const bool overlong = (size == 3 && code < 0x800) || (size == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  if (overlong || surrogate || code > 0x10FFFF) return kInvalid;
  return {code, size};
}

void append_utf8(std::string& text, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  const auto tail = [&](int shift) { put(0x80u | (code >> shift & 0x3Fu)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0u | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    put(0xE0u | code >> 12);
    tail(6);
    tail(0);
  } else {
    put(0xF0u | code >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

std::size_t complete_utf8_prefix(std::string_view text) {
  // A sequence has at most four bytes, so an unfinished one starts among the last three.
  for (std::size_t back = 1; back <= std::min<std::size_t>(3, text.size()); ++back) {
    const char byte = text[text.size() - back];
    if (is_continuation(byte)) continue;
    const int size = sequence_size(static_cast<std::uint8_t>(byte));
    return static_cast<std::size_t>(size) > back ? text.size() - back : text.size();
  }
  return text.size();
}

CodeClass classify(std::uint32_t code) {
  if (is_space(code)) return CodeClass::kSpace;
  if (contains(kLetterRanges, code)) return CodeClass::kLetter;
  if (contains(kNumberRanges, code)) return CodeClass::kNumber;
  return CodeClass::kOther;
}

}  // namespace kvmesh::engine
