#include "launch/cli/chat.hpp"

#include <fmt/format.h>

#include <optional>
#include <string>

#include "launch/cli/chat_template.hpp"

namespace kvmesh::launch {
namespace {

using engine::Token;

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

// How a chat is put to this model; nothing: as the prompt is.
std::optional<ChatTemplate> chat_of(const engine::GgufFile& file, bool has_control_tokens) {
  const auto* source = file.find<std::string_view>("tokenizer.chat_template");
  if (source == nullptr) return has_control_tokens ? std::optional(ChatTemplate{}) : std::nullopt;
  std::optional<ChatTemplate> chat = read_chat_template(*source);
  if (chat && has_control_tokens) return chat;
  throw engine::ModelError(fmt::format(
      "{}: the model's chat template is not supported: this program knows ChatML, in its simple "
      "form and with the control tokens <|im_start|> and <|im_end|>; give --raw to continue the "
      "prompt as it is",
      file.path()));
}

}  // namespace

Prompt prompt_of(const engine::GgufFile& file, const engine::Tokenizer& tokenizer,
                 std::string_view prompt, bool chat) {
  Prompt result{.tokens = {}, .ends = tokenizer.end_tokens()};
  if (const std::optional<Token> begin = tokenizer.begin_token()) result.tokens.push_back(*begin);
  const std::optional<Token> start = tokenizer.find("<|im_start|>");
  const std::optional<Token> end = tokenizer.find("<|im_end|>");
  std::optional<ChatTemplate> format;
  if (chat && !prompt.empty()) format = chat_of(file, start && end);
  if (!format) {
    const std::vector<Token> plain = tokenizer.encode(prompt);
    result.tokens.insert(result.tokens.end(), plain.begin(), plain.end());
    return result;
  }
  ChatMl conversation(tokenizer, *start, *end);
  conversation.tokens = std::move(result.tokens);
  if (!format->system.empty()) conversation.turn("system", format->system);
  conversation.turn("user", prompt);
  conversation.open("assistant", "");
  result.tokens = std::move(conversation.tokens);
  result.ends.push_back(*end);
  return result;
}

}  // namespace kvmesh::launch
