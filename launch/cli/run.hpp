// One answer, from its prompt to its last token.
#pragma once

#include <functional>
#include <vector>

#include "launch/cli/chat.hpp"
#include "launch/cli/generator.hpp"

namespace kvmesh::launch {

struct Run {
  std::vector<engine::Token> tokens;
  double prompt_seconds = 0;
  double new_seconds = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;  ///< of the prompt, from the prefix cache
  bool ended = false;              ///< by the model, not by the number of tokens
};

/// Called on every rank, after each part.
struct RunObserver {
  /// Gets the number of prompt tokens that the cache holds so far, and of all prompt tokens.
  std::function<void(std::int64_t, std::int64_t)> on_prompt;
  std::function<void(engine::Token)> on_token;
};

/// Processes what the cache lacks of the prompt, then generates tokens until the model ends the
/// text or there are `max_tokens`.
/// @throws the errors of Generator::feed.
/// Collective.
Run run(Generator& generator, const Prompt& prompt, std::int64_t max_tokens,
        const RunObserver& observer);

}  // namespace kvmesh::launch
