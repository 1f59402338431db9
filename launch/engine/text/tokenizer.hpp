// Converts text to token ids and back: GPT-2's byte-level BPE, with the vocabulary and merges of a
// GGUF file.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "launch/engine/gguf/gguf.hpp"

namespace kvmesh::engine {

using Token = std::int32_t;

/// True: names of control tokens in a text ("<|im_start|>") become the tokens. Do not set it for a
/// user's text, which could then imitate the system.
enum class ControlTokens : std::uint8_t { kAsText, kRecognise };

/// Immutable after construction: safe to share between threads. Keeps no reference to the file.
/// decode(encode(text)) == text for every text, UTF-8 or not, whose bytes the vocabulary has. Some
/// models lack control characters and bytes that UTF-8 never uses; encode() then drops them, as in
/// training.
class Tokenizer {
 public:
  /// @throws ModelError if the file has no such tokenizer or a broken one.
  explicit Tokenizer(const GgufFile& file);
  Tokenizer(Tokenizer&&) = default;  // no copies: the lookup table views the strings
  Tokenizer& operator=(Tokenizer&&) = default;

  std::vector<Token> encode(std::string_view text,
                            ControlTokens control = ControlTokens::kAsText) const;

  /// Returns the bytes of a token, possibly part of a character; of a control token its name.
  /// @throws InvalidArgument for an id outside the vocabulary.
  std::string_view decode(Token token) const;
  std::string decode(const std::vector<Token>& tokens) const;

  Token size() const { return static_cast<Token>(bytes_.size()); }
  bool is_control(Token token) const;
  /// Returns the token with this name (control tokens) or these bytes (text tokens).
  std::optional<Token> find(std::string_view name) const;

  /// The tokens that end an answer: the file's end of text and end of turn, if it has them.
  const std::vector<Token>& end_tokens() const { return end_tokens_; }
  /// The token that every text starts with, if the file demands one. encode() does not add it.
  std::optional<Token> begin_token() const { return begin_token_; }

 private:
  enum class Kind : std::uint8_t { kText, kControl, kUserDefined };
  struct Merge {
    std::int32_t order;
    Token result;
  };

  void read_vocabulary(const GgufFile& file);
  void read_merges(const GgufFile& file);
  void read_ends(const GgufFile& file);
  /// The special token that `text` starts with, the longest if several do.
  std::optional<Token> special_at(std::string_view text, ControlTokens control) const;
  void encode_piece(std::string_view text, std::vector<Token>& tokens) const;
  void encode_word(std::string_view word, std::vector<Token>& tokens) const;

  std::vector<std::string> bytes_;
  std::vector<Kind> kinds_;
  std::unordered_map<std::string_view, Token> text_tokens_;  ///< Views of bytes_.
  std::vector<Token> specials_;                              ///< Longest name first.
  std::array<bool, 256> special_starts_{};
  std::array<Token, 256> byte_tokens_{};
  std::unordered_map<std::uint64_t, Merge> merges_;  ///< By (left << 32 | right).
  std::vector<Token> end_tokens_;
  std::optional<Token> begin_token_;
};

/// Joins the bytes of tokens into text that can be printed at once: a character whose bytes are
/// spread over tokens is returned with its last byte. Bytes that are part of no character become
/// the replacement character U+FFFD.
class TextStream {
 public:
  /// Takes more bytes; returns the text that they complete.
  std::string push(std::string_view bytes);
  /// Returns U+FFFD if an unfinished character is left at the end, else nothing.
  std::string finish();

 private:
  std::string pending_;
};

}  // namespace kvmesh::engine
