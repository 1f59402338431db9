// The chat template of a model file: Jinja source, of which this program understands one family.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvmesh::launch {

/// ChatML: each message is "<|im_start|>ROLE\nTEXT<|im_end|>\n".
struct ChatTemplate {
  std::string system;  ///< the system message of a conversation without one; may be empty
};

/// Reads a template that is no more than ChatML: a loop over the messages, optionally a default
/// system message and the beginning of the answer. Spaces, the kind of quotes and the form of an
/// output statement make no difference. Returns empty for every other template, since the effect of
/// a part that is not understood is unknown.
std::optional<ChatTemplate> read_chat_template(std::string_view source);

}  // namespace kvmesh::launch
