// Splits text into words; the tokenizer merges within a word.
#pragma once

#include <string_view>
#include <vector>

namespace kvmesh::engine {

/// The pre-tokeniser that GGUF calls "smollm": every number character alone, then, between them,
/// the words of GPT-2 by its expression
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// Concatenated, the words are `text` again. Bytes that are not UTF-8 count as "other" characters.
std::vector<std::string_view> split_words(std::string_view text);

}  // namespace kvmesh::engine
