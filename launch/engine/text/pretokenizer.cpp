#include "launch/engine/text/pretokenizer.hpp"

#include <array>

#include "launch/engine/text/unicode.hpp"

namespace kvmesh::engine {
namespace {

CodeClass class_at(std::string_view text) { return classify(decode_utf8(text).code); }

/// Returns the length in bytes of the run of `wanted` at the start of `text`.
std::size_t run_length(std::string_view text, CodeClass wanted) {
  std::size_t at = 0;
  while (at < text.size()) {
    const CodePoint next = decode_utf8(text.substr(at));
    if (classify(next.code) != wanted) break;
    at += static_cast<std::size_t>(next.size);
  }
  return at;
}

/// 's|'t|'re|'ve|'m|'ll|'d, or 0.
std::size_t contraction_length(std::string_view text) {
  constexpr std::array<std::string_view, 7> kContractions{"'s", "'t",  "'re", "'ve",
                                                          "'m", "'ll", "'d"};
  for (std::string_view contraction : kContractions) {
    if (text.starts_with(contraction)) return contraction.size();
  }
  return 0;
}

/// \s+(?!\S) before \s+: the last character of a run of white space belongs to the next word.
std::size_t space_length(std::string_view text) {
  const std::size_t run = run_length(text, CodeClass::kSpace);
  if (run == text.size()) return run;
  std::size_t last = 0;
  for (std::size_t at = 0; at < run;) {
    last = at;
    at += static_cast<std::size_t>(decode_utf8(text.substr(at)).size);
  }
  return last > 0 ? last : run;
}

/// The first word of `text`, which is not empty and has no number character.
std::size_t word_length(std::string_view text) {
  if (const std::size_t size = contraction_length(text)) return size;
  const std::size_t space = text[0] == ' ' && text.size() > 1 ? 1 : 0;
  const CodeClass kind = class_at(text.substr(space));
  if (kind != CodeClass::kSpace) return space + run_length(text.substr(space), kind);
  return space_length(text);
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  std::size_t begin = 0;
  const auto take = [&](std::size_t size) {
    words.push_back(text.substr(begin, size));
    begin += size;
  };
  while (begin < text.size()) {
    // The text up to the next number character is split on its own: white space just before a
    // number ends its piece and stays whole.
    std::size_t end = begin;
    std::size_t number_size = 0;
    while (end < text.size() && number_size == 0) {
      const CodePoint next = decode_utf8(text.substr(end));
      const auto size = static_cast<std::size_t>(next.size);
      (classify(next.code) == CodeClass::kNumber ? number_size : end) += size;
    }
    while (begin < end) take(word_length(text.substr(begin, end - begin)));
    if (number_size > 0) take(number_size);
  }
  return words;
}

}  // namespace kvmesh::engine
