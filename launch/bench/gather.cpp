#include "launch/bench/gather.hpp"

#include <algorithm>

namespace kvmesh::bench {

GatherList gather_list(const std::vector<PageReads::Sequence>& sequences, std::int64_t page_size,
                       std::int64_t part_tokens) {
  const std::int64_t tokens_of_part =
      std::max<std::int64_t>(1, part_tokens / page_size) * page_size;
  GatherList list;
  for (const PageReads::Sequence& sequence : sequences) {
    const auto first = static_cast<std::int64_t>(list.pages.size());
    list.pages.insert(list.pages.end(), sequence.pages.begin(), sequence.pages.end());
    for (std::int64_t token = 0; token < sequence.tokens; token += tokens_of_part) {
      list.parts.push_back(
          {.first = static_cast<std::int32_t>(first + token / page_size),
           .tokens = static_cast<std::int32_t>(std::min(tokens_of_part, sequence.tokens - token))});
    }
  }
  return list;
}

std::int64_t gather_part_tokens(const std::vector<PageReads::Sequence>& sequences,
                                std::int64_t heads, std::int64_t blocks) {
  constexpr std::int64_t kMost = 512, kLeast = 64, kPiecesPerBlock = 4;
  std::int64_t tokens = 0;
  for (const PageReads::Sequence& sequence : sequences) tokens += sequence.tokens;
  std::int64_t part = kMost;
  while (part > kLeast && tokens / part * heads < kPiecesPerBlock * blocks) part /= 2;
  return part;
}

}  // namespace kvmesh::bench
