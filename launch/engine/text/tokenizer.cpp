#include "launch/engine/text/tokenizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <queue>
#include <tuple>
#include <utility>

#include "launch/engine/text/pretokenizer.hpp"
#include "launch/engine/text/unicode.hpp"

namespace kvmesh::engine {
namespace {

/// GPT-2 writes its tokens in a vocabulary of visible characters: a printable Latin-1 byte is the
/// character of its own number, the 68 others are the characters from 256 up, in order.
/// Source: Radford et al., 2019, bytes_to_unicode.
std::array<std::uint32_t, 256> make_byte_codes() {
  std::array<std::uint32_t, 256> codes{};
  std::uint32_t next = 256;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    codes[byte] = visible ? byte : next++;
  }
  return codes;
}

/// Returns the bytes that visible characters stand for; empty if one stands for none.
class ByteDecoder {
 public:
  ByteDecoder() {
    bytes_.fill(-1);
    const auto codes = make_byte_codes();
    for (std::size_t byte = 0; byte < codes.size(); ++byte) {
      bytes_[codes[byte]] = static_cast<std::int16_t>(byte);
    }
  }

  std::optional<std::string> operator()(std::string_view visible) const {
    std::string bytes;
    while (!visible.empty()) {
      const CodePoint next = decode_utf8(visible);
      if (next.code >= bytes_.size() || bytes_[next.code] < 0) return std::nullopt;
      bytes.push_back(static_cast<char>(bytes_[next.code]));
      visible.remove_prefix(static_cast<std::size_t>(next.size));
    }
    return bytes;
  }

 private:
  std::array<std::int16_t, 256 + 68> bytes_{};
};

constexpr Token kNoToken = -1;

std::uint64_t pair_key(Token left, Token right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

[[noreturn]] void bad(const GgufFile& file, std::string_view what) {
  throw ModelError(fmt::format("{}: {}", file.path(), what));
}

}  // namespace

Tokenizer::Tokenizer(const GgufFile& file) {
  const auto model = file.get<std::string_view>("tokenizer.ggml.model");
  if (model != "gpt2") {
    bad(file, fmt::format("tokenizer '{}' is not supported: this program runs 'gpt2' (byte-level "
                          "BPE); use a model that has it",
                          printable(model)));
  }
  const auto* splitter = file.find<std::string_view>("tokenizer.ggml.pre");
  if (splitter != nullptr && *splitter != "smollm") {
    bad(file, fmt::format("pre-tokenizer '{}' is not supported: this program runs 'smollm'; use a "
                          "model that has it",
                          printable(*splitter)));
  }
  read_vocabulary(file);
  read_merges(file);
  read_ends(file);
}

void Tokenizer::read_vocabulary(const GgufFile& file) {
  constexpr std::int64_t kControlType = 3;
  constexpr std::int64_t kUserDefinedType = 4;
  const auto& names = file.get<std::vector<std::string_view>>("tokenizer.ggml.tokens");
  const auto* types = file.find<std::vector<std::int64_t>>("tokenizer.ggml.token_type");
  if (types != nullptr && types->size() != names.size()) {
    bad(file, "damaged: as many token types as tokens are needed; download it again");
  }
  const ByteDecoder to_bytes;
  bytes_.reserve(names.size());  // text_tokens_ views its strings: they must not move
  for (std::size_t id = 0; id < names.size(); ++id) {
    const std::int64_t type = types == nullptr ? 1 : (*types)[id];
    const Kind kind = type == kControlType       ? Kind::kControl
                      : type == kUserDefinedType ? Kind::kUserDefined
                                                 : Kind::kText;
    kinds_.push_back(kind);
    std::optional<std::string> text;
    if (kind == Kind::kText) text = to_bytes(names[id]);
    bytes_.push_back(text ? std::move(*text) : std::string(names[id]));
    if (kind == Kind::kText) {
      text_tokens_.emplace(bytes_.back(), static_cast<Token>(id));
    } else if (!bytes_.back().empty()) {
      specials_.push_back(static_cast<Token>(id));
      special_starts_[static_cast<std::uint8_t>(bytes_.back()[0])] = true;
    }
  }
  std::ranges::stable_sort(specials_, std::ranges::greater{}, [&](Token token) {
    return bytes_[static_cast<std::size_t>(token)].size();
  });
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const auto token = text_tokens_.find(std::string_view(&c, 1));
    byte_tokens_[byte] = token == text_tokens_.end() ? kNoToken : token->second;
    if (byte_tokens_[byte] == kNoToken && c >= ' ' && c <= '~') {
      bad(file, fmt::format("damaged: the vocabulary has no token for '{}'; download it again", c));
    }
  }
}

void Tokenizer::read_merges(const GgufFile& file) {
  const ByteDecoder to_bytes;
  const auto token = [&](std::string_view bytes) {
    const auto entry = text_tokens_.find(bytes);
    return entry == text_tokens_.end() ? kNoToken : entry->second;
  };
  const auto& lines = file.get<std::vector<std::string_view>>("tokenizer.ggml.merges");
  merges_.reserve(lines.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    // "left right": neither holds a space, which the visible alphabet writes as another character.
    const std::size_t space = lines[i].find(' ');
    const auto left = to_bytes(lines[i].substr(0, space));
    const auto right =
        space == std::string_view::npos ? std::nullopt : to_bytes(lines[i].substr(space + 1));
    const Token result = left && right ? token(*left + *right) : kNoToken;
    if (result == kNoToken || token(*left) == kNoToken || token(*right) == kNoToken) {
      bad(file, fmt::format("damaged: merge {}, '{}', is not of tokens of the vocabulary; download "
                            "it again",
                            i, printable(lines[i])));
    }
    merges_.emplace(pair_key(token(*left), token(*right)),
                    Merge{static_cast<std::int32_t>(i), result});
  }
}

void Tokenizer::read_ends(const GgufFile& file) {
  const auto token_of = [&](std::string_view key) -> std::optional<Token> {
    const auto* id = file.find<std::int64_t>(key);
    if (id == nullptr) return std::nullopt;
    if (*id < 0 || *id >= size()) {
      bad(file, fmt::format("damaged: {} is {}, the vocabulary has {} tokens; download it again",
                            key, *id, size()));
    }
    return static_cast<Token>(*id);
  };
  for (const auto* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto token = token_of(key);
    if (token && std::ranges::count(end_tokens_, *token) == 0) end_tokens_.push_back(*token);
  }
  const auto* add = file.find<bool>("tokenizer.ggml.add_bos_token");
  if (add != nullptr && *add) begin_token_ = token_of("tokenizer.ggml.bos_token_id");
}

std::optional<Token> Tokenizer::special_at(std::string_view text, ControlTokens control) const {
  if (!special_starts_[static_cast<std::uint8_t>(text[0])]) return std::nullopt;
  for (Token token : specials_) {
    const bool wanted = control == ControlTokens::kRecognise || !is_control(token);
    if (wanted && text.starts_with(decode(token))) return token;
  }
  return std::nullopt;
}

std::vector<Token> Tokenizer::encode(std::string_view text, ControlTokens control) const {
  std::vector<Token> tokens;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto special = special_at(text.substr(at), control);
    if (!special) {
      ++at;
      continue;
    }
    encode_piece(text.substr(begin, at - begin), tokens);
    tokens.push_back(*special);
    at += decode(*special).size();
    begin = at;
  }
  encode_piece(text.substr(begin), tokens);
  return tokens;
}

void Tokenizer::encode_piece(std::string_view text, std::vector<Token>& tokens) const {
  for (std::string_view word : split_words(text)) {
    const auto whole = text_tokens_.find(word);
    // A word of one byte is its token; longer ones go through the merges even if they are tokens,
    // as the merges define what training saw.
    if (word.size() == 1 && whole != text_tokens_.end()) {
      tokens.push_back(whole->second);
    } else {
      encode_word(word, tokens);
    }
  }
}

/// Starts from bytes and applies, again and again, the earliest merge that fits, the leftmost
/// first. The heap holds every adjacent pair that merges; an entry whose ends have changed since is
/// skipped.
void Tokenizer::encode_word(std::string_view word, std::vector<Token>& tokens) const {
  struct Part {
    Token token;
    int previous;
    int next;
  };
  std::vector<Part> parts;
  parts.reserve(word.size());
  for (char c : word) {
    const Token token = byte_tokens_[static_cast<std::uint8_t>(c)];
    const int i = static_cast<int>(parts.size());
    if (token != kNoToken) parts.push_back({token, i - 1, i + 1});
  }
  const int count = static_cast<int>(parts.size());
  if (count == 0) return;
  parts.back().next = -1;
  const auto part = [&](int i) -> Part& { return parts[static_cast<std::size_t>(i)]; };
  using Candidate = std::tuple<std::int32_t, int, Token, Token, Token>;  // order, left, ids, result
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto offer = [&](int left) {
    if (left < 0 || part(left).next < 0) return;
    const Token a = part(left).token;
    const Token b = part(part(left).next).token;
    const auto merge = merges_.find(pair_key(a, b));
    if (merge == merges_.end()) return;
    candidates.emplace(merge->second.order, left, a, b, merge->second.result);
  };
  for (int i = 0; i < count; ++i) offer(i);
  while (!candidates.empty()) {
    const auto [order, left, a, b, result] = candidates.top();
    candidates.pop();
    const int right = part(left).next;
    if (part(left).token != a || right < 0 || part(right).token != b) continue;
    part(left) = {result, part(left).previous, part(right).next};
    if (part(right).next >= 0) part(part(right).next).previous = left;
    part(right).token = kNoToken;  // swallowed: no entry of the heap fits it any more
    offer(part(left).previous);
    offer(left);
  }
  for (int i = 0; i >= 0; i = part(i).next) tokens.push_back(part(i).token);
}

std::string_view Tokenizer::decode(Token token) const {
  if (token < 0 || token >= size()) {
    throw InvalidArgument(
        fmt::format("token {} is not in the vocabulary, which has {}", token, size()));
  }
  return bytes_[static_cast<std::size_t>(token)];
}

std::string Tokenizer::decode(const std::vector<Token>& tokens) const {
  std::string text;
  for (Token token : tokens) text += decode(token);
  return text;
}

bool Tokenizer::is_control(Token token) const {
  return token >= 0 && token < size() && kinds_[static_cast<std::size_t>(token)] == Kind::kControl;
}

std::optional<Token> Tokenizer::find(std::string_view name) const {
  for (Token token : specials_) {
    if (decode(token) == name) return token;
  }
  const auto entry = text_tokens_.find(name);
  if (entry == text_tokens_.end()) return std::nullopt;
  return entry->second;
}

namespace {

/// `text` with a replacement character for each byte that is part of no character.
std::string valid_utf8(std::string_view text) {
  constexpr std::uint32_t kReplacement = 0xFFFD;
  std::string valid;
  while (!text.empty()) {
    const CodePoint next = decode_utf8(text);
    append_utf8(valid, next.code == kInvalidCode ? kReplacement : next.code);
    text.remove_prefix(static_cast<std::size_t>(next.size));
  }
  return valid;
}

}  // namespace

std::string TextStream::push(std::string_view bytes) {
  pending_ += bytes;
  const std::size_t complete = complete_utf8_prefix(pending_);
  std::string text = valid_utf8(std::string_view(pending_).substr(0, complete));
  pending_.erase(0, complete);
  return text;
}

std::string TextStream::finish() {
  return std::exchange(pending_, {}).empty() ? "" : valid_utf8("\xFF");
}

}  // namespace kvmesh::engine
