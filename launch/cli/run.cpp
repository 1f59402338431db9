#include "launch/cli/run.hpp"

#include <algorithm>

#include "launch/cli/clock.hpp"

namespace kvmesh::launch {
namespace {

using engine::Token;

// Tokens of a prompt that go through the model in one step: enough to use each weight often, while
// activations stay in cache.
constexpr std::size_t kPrefillChunk = 128;

}  // namespace

Run run(Generator& generator, const Prompt& prompt, std::int64_t max_tokens,
        const RunObserver& observer) {
  Run result;
  result.prompt_tokens = std::ssize(prompt.tokens);
  const std::span<const Token> tokens(prompt.tokens);
  const auto start = Clock::now();
  Token next = 0;
  result.cached_tokens = generator.begin(tokens);
  for (auto i = static_cast<std::size_t>(result.cached_tokens); i < tokens.size();
       i += kPrefillChunk) {
    const std::size_t count = std::min(kPrefillChunk, tokens.size() - i);
    next = generator.feed(tokens.subspan(i, count));
    observer.on_prompt(static_cast<std::int64_t>(i + count), std::ssize(tokens));
  }
  result.prompt_seconds = seconds_since(start);

  const auto decode_start = Clock::now();
  while (!(result.ended = std::ranges::count(prompt.ends, next) > 0)) {
    result.tokens.push_back(next);
    observer.on_token(next);
    if (std::ssize(result.tokens) >= max_tokens) break;
    next = generator.feed(std::span(&next, 1));
  }
  result.new_seconds = seconds_since(decode_start);
  return result;
}

}  // namespace kvmesh::launch
