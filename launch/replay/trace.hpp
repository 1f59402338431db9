// Requests as they came to a service: read from a public trace, or drawn from its statistics.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/error.hpp"

namespace kvmesh::replay {

/// A file that is no trace. The message has path and line.
class TraceError : public InvalidArgument {
 public:
  using InvalidArgument::InvalidArgument;
};

inline constexpr std::int64_t kBlockTokens = 512;

/// One request. Block i of the prompt holds its tokens [512 i, 512 (i + 1)); the last may be
/// partial. Two blocks with one number hold the same tokens after the same tokens.
struct Request {
  double arrival_s = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t answer_tokens = 0;
  std::vector<std::uint32_t> blocks;
};

struct Trace {
  std::string name;
  std::vector<Request> requests;  ///< by arrival
  std::int64_t prompt_tokens() const;
};

/// The most blocks of all requests together: 4 bytes each, so 1 GiB, for 1.4e11 prompt tokens.
inline constexpr std::int64_t kMostBlocks = std::int64_t{1} << 28;

/// Reads the JSON lines of Mooncake (timestamp in ms, input_length, output_length, hash_ids) or the
/// CSV of Azure (TIMESTAMP, ContextTokens, GeneratedTokens). Azure's traces do not say what prompts
/// share, so no block is in two of them.
/// @throws TraceError, also for a line of more than 32 MiB, or more blocks than `most_blocks`.
Trace read_trace(const std::string& path, std::int64_t most_blocks = kMostBlocks);

/// Draws `requests` (0: as many as the trace had) from the statistics called `name`: "conversation"
/// or "synthetic" (Mooncake's), "azure-code" or "azure-conversation".
/// @throws InvalidArgument for another name.
Trace generated_trace(std::string_view name, std::int64_t requests, std::uint64_t seed);

/// The tokens of the prompt: a function of its blocks' numbers alone.
std::vector<std::int32_t> prompt_of(const Request& request);
/// Tokens [first, first + count) of the answer to request `number`.
std::vector<std::int32_t> answer_of(std::size_t number, std::int64_t first, std::int64_t count);

}  // namespace kvmesh::replay
