// A prompt in the form that a chat model was trained on.
#pragma once

#include <string_view>
#include <vector>

#include "launch/engine/gguf.hpp"
#include "launch/engine/tokenizer.hpp"

namespace kvmesh::launch {

/// The tokens of `prompt`: as a user's turn in ChatML if `chat` and the model knows ChatML's
/// control tokens, with the system message of the file's own template; else as they are. Nothing in
/// the prompt is ever taken for a control token.
std::vector<engine::Token> prompt_tokens(const engine::GgufFile& file,
                                         const engine::Tokenizer& tokenizer,
                                         std::string_view prompt, bool chat);

}  // namespace kvmesh::launch
