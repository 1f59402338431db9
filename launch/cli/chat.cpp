#include "launch/cli/chat.hpp"

#include <fmt/format.h>

#include <optional>
#include <string>

#include "launch/cli/chat_template.hpp"

namespace kvmesh::launch {
namespace {

using engine::Token;

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

Conversation::Conversation(const engine::GgufFile& file, const engine::Tokenizer& tokenizer,
                           bool chat)
    : tokenizer_(tokenizer) {
  prompt_.ends = tokenizer.end_tokens();
  if (const std::optional<Token> begin = tokenizer.begin_token()) prompt_.tokens.push_back(*begin);
  const std::optional<Token> start = tokenizer.find("<|im_start|>");
  const std::optional<Token> end = tokenizer.find("<|im_end|>");
  std::optional<ChatTemplate> format;
  if (chat) format = chat_of(file, start && end);
  if (!format) return;
  chat_ = true;
  start_ = *start;
  end_ = *end;
  prompt_.ends.push_back(end_);
  if (format->system.empty()) return;
  open_turn("system", format->system);
  close_turn();
}

const Prompt& Conversation::ask(std::string_view prompt) {
  if (chat_) {
    if (answer_is_open_) close_turn();
    open_turn("user", prompt);
    close_turn();
    open_turn("assistant", "");
    answer_is_open_ = true;
  } else {
    add(prompt);
  }
  return prompt_;
}

void Conversation::answer(std::span<const Token> tokens) {
  prompt_.tokens.insert(prompt_.tokens.end(), tokens.begin(), tokens.end());
}

void Conversation::add(std::string_view text) {
  const std::vector<Token> encoded = tokenizer_.encode(text);
  prompt_.tokens.insert(prompt_.tokens.end(), encoded.begin(), encoded.end());
}

void Conversation::open_turn(std::string_view role, std::string_view text) {
  prompt_.tokens.push_back(start_);
  add(std::string(role) + "\n" + std::string(text));
}

void Conversation::close_turn() {
  prompt_.tokens.push_back(end_);
  add("\n");
}

}  // namespace kvmesh::launch
