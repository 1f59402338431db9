// A prompt in the form that a chat model was trained on.
#pragma once

#include <string_view>
#include <vector>

#include "launch/engine/gguf.hpp"
#include "launch/engine/tokenizer.hpp"

namespace kvmesh::launch {

struct Prompt {
  std::vector<engine::Token> tokens;
  std::vector<engine::Token> ends;  ///< what ends the answer
};

/// The tokens of `prompt`: as a user's turn in ChatML if `chat` and the file's template is ChatML
/// (see chat_template.hpp), or if there is none and the vocabulary has ChatML's control tokens;
/// else as they are. Nothing in the prompt is ever taken for a control token. What closes a turn in
/// ChatML ends the answer whatever the file calls the end of a text.
/// @throws ModelError if `chat` and the file has a template of another kind.
Prompt prompt_of(const engine::GgufFile& file, const engine::Tokenizer& tokenizer,
                 std::string_view prompt, bool chat);

}  // namespace kvmesh::launch
