#include "launch/cli/chat.hpp"

#include <optional>
#include <string>

namespace kvmesh::launch {
namespace {

using engine::Token;

// The default system message: what the template puts between "<|im_start|>system\n" and
// "<|im_end|>" when the conversation does not bring its own.
std::string_view system_message(const engine::GgufFile& file) {
  constexpr std::string_view kBegin = "<|im_start|>system\n", kEnd = "<|im_end|>";
  const auto* value = file.find<std::string_view>("tokenizer.chat_template");
  if (!value) return {};
  const std::size_t begin = value->find(kBegin);
  if (begin == std::string_view::npos) return {};
  const std::string_view rest = value->substr(begin + kBegin.size());
  const std::size_t end = rest.find(kEnd);
  return end == std::string_view::npos ? std::string_view{} : rest.substr(0, end);
}

class ChatMl {
 public:
  ChatMl(const engine::Tokenizer& tokenizer, Token start, Token end)
      : tokenizer_(tokenizer), start_(start), end_(end) {}

  void turn(std::string_view role, std::string_view text) {
    open(role, text);
    tokens.push_back(end_);
    add("\n");
  }
  void open(std::string_view role, std::string_view text) {
    tokens.push_back(start_);
    add(std::string(role) + "\n" + std::string(text));
  }

  std::vector<Token> tokens;

 private:
  void add(const std::string& text) {
    const std::vector<Token> encoded = tokenizer_.encode(text);
    tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  }

  const engine::Tokenizer& tokenizer_;
  Token start_, end_;
};

}  // namespace

std::vector<Token> prompt_tokens(const engine::GgufFile& file, const engine::Tokenizer& tokenizer,
                                 std::string_view prompt, bool chat) {
  std::vector<Token> tokens;
  if (const std::optional<Token> begin = tokenizer.begin_token()) tokens.push_back(*begin);
  const std::optional<Token> start = tokenizer.find("<|im_start|>");
  const std::optional<Token> end = tokenizer.find("<|im_end|>");
  if (!chat || !start || !end || prompt.empty()) {
    const std::vector<Token> plain = tokenizer.encode(prompt);
    tokens.insert(tokens.end(), plain.begin(), plain.end());
    return tokens;
  }
  ChatMl conversation(tokenizer, *start, *end);
  conversation.tokens = std::move(tokens);
  const std::string_view system = system_message(file);
  if (!system.empty()) conversation.turn("system", system);
  conversation.turn("user", prompt);
  conversation.open("assistant", "");
  return std::move(conversation.tokens);
}

}  // namespace kvmesh::launch
