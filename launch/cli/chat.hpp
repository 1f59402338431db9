// A prompt in the form that a chat model was trained on.
#pragma once

#include <string_view>
#include <vector>

#include "launch/engine/gguf.hpp"
#include "launch/engine/tokenizer.hpp"

namespace kvmesh::launch {

struct Prompt {
  std::vector<engine::Token> tokens;
  std::vector<engine::Token> ends;  ///< each of these tokens ends the answer
};

/// Returns the tokens of `prompt`. If `chat` is set they form a user's turn in ChatML, provided
/// that the file's template is ChatML (chat_template.hpp), or that it has no template and the
/// vocabulary has ChatML's control tokens. No text of the prompt becomes a control token. The token
/// that closes a turn in ChatML ends the answer, also if the file names another end of text.
/// @throws ModelError if `chat` and the file has a template of another kind.
Prompt prompt_of(const engine::GgufFile& file, const engine::Tokenizer& tokenizer,
                 std::string_view prompt, bool chat);

}  // namespace kvmesh::launch
