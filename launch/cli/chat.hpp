// A conversation in the form that a chat model was trained on.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "launch/engine/gguf/gguf.hpp"
#include "launch/engine/text/tokenizer.hpp"

namespace kvmesh::launch {

struct Prompt {
  std::vector<engine::Token> tokens;
  std::vector<engine::Token> ends;  ///< each of these tokens ends the answer
};

/// The tokens of a conversation, turn by turn. In the chat format each prompt becomes a user's turn
/// in ChatML, provided that the file's template is ChatML (chat_template.hpp), or that it has no
/// template and the vocabulary has ChatML's control tokens. Otherwise a prompt goes on where the
/// text before it ends. No text of a prompt becomes a control token. The token that closes a turn
/// in ChatML ends the answer, also if the file names another end of text.
/// REQUIRES: the tokenizer outlives the conversation.
class Conversation {
 public:
  /// @throws ModelError if `chat` and the file has a template of another kind.
  Conversation(const engine::GgufFile& file, const engine::Tokenizer& tokenizer, bool chat);

  /// Adds a prompt. Returns all tokens so far: those of earlier turns come first, unchanged.
  const Prompt& ask(std::string_view prompt);
  /// The tokens of which each ends an answer.
  const std::vector<engine::Token>& ends() const { return prompt_.ends; }
  /// Adds the answer to the last prompt, without the token that ended it.
  void answer(std::span<const engine::Token> tokens);

 private:
  void add(std::string_view text);
  void open_turn(std::string_view role, std::string_view text);
  void close_turn();

  const engine::Tokenizer& tokenizer_;
  bool chat_ = false;  ///< prompts are put into ChatML
  engine::Token start_ = 0, end_ = 0;
  bool answer_is_open_ = false;
  Prompt prompt_;
};

}  // namespace kvmesh::launch
