// What a model's file says of the form of a chat: a Jinja template, of which this program
// understands one family.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvmesh::launch {

/// ChatML: each message is "<|im_start|>ROLE\nTEXT<|im_end|>\n".
struct ChatTemplate {
  std::string system;  ///< the first message of a conversation that brings no other; may be empty
};

/// What `source` says, if it says no more than ChatML: a loop over the messages that writes each of
/// them so, maybe a system message where there is none, maybe the begin of the answer. Spaces,
/// quotes and the ways to write an output do not matter. Nothing for every other template: what a
/// part that is not understood would do cannot be known.
std::optional<ChatTemplate> read_chat_template(std::string_view source);

}  // namespace kvmesh::launch
