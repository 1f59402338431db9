#include "launch/replay/trace.hpp"

#include <algorithm>
#include <numeric>

namespace kvmesh::replay {
namespace {

constexpr std::uint64_t kVocabulary = 128'000;

// A token that depends on the number of its text and its place there (splitmix64).
std::int32_t token_of(std::uint64_t text, std::uint64_t place) {
  std::uint64_t x = (text << 20) + place + 1;
  x *= 0x9E37'79B9'7F4A'7C15;
  x = (x ^ x >> 30) * 0xBF58'476D'1CE4'E5B9;
  x = (x ^ x >> 27) * 0x94D0'49BB'1331'11EB;
  return static_cast<std::int32_t>((x ^ x >> 31) % kVocabulary);
}

// Numbers of answers, past those of blocks.
constexpr std::uint64_t kAnswers = std::uint64_t{1} << 32;

}  // namespace

std::int64_t Trace::prompt_tokens() const {
  return std::accumulate(
      requests.begin(), requests.end(), std::int64_t{0},
      [](std::int64_t sum, const Request& request) { return sum + request.prompt_tokens; });
}

std::vector<std::int32_t> prompt_of(const Request& request) {
  std::vector<std::int32_t> tokens;
  tokens.reserve(static_cast<std::size_t>(request.prompt_tokens));
  for (const std::uint32_t block : request.blocks) {
    const std::int64_t count = std::min(kBlockTokens, request.prompt_tokens - std::ssize(tokens));
    for (std::int64_t i = 0; i < count; ++i)
      tokens.push_back(token_of(block, static_cast<std::uint64_t>(i)));
  }
  return tokens;
}

std::vector<std::int32_t> answer_of(std::size_t number, std::int64_t first, std::int64_t count) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = first; i < first + count; ++i)
    tokens.push_back(token_of(kAnswers + number, static_cast<std::uint64_t>(i)));
  return tokens;
}

}  // namespace kvmesh::replay
