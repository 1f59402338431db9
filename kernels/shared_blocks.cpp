#include "kernels/shared_blocks.hpp"

#include <algorithm>

#include "kernels/attend_steps.hpp"

namespace kvmesh {

void SharedBlocks::clear() {
  blocks.clear();
  tokens.clear();
  parts.clear();
}

void SharedBlocks::set(const AttendSteps& steps, const ModGraph& mask, std::int64_t most_tokens) {
  clear();
  if (steps.shared.empty()) return;
  first_tokens_.clear();
  std::int64_t token = 0;
  for (const AttendSequence& sequence : steps.sequences) {
    first_tokens_.push_back(token);
    token += sequence.queries;
  }
  for (SharedPrefix prefix : steps.shared) {
    prefix.pages = pages_seen_whole(mask, steps, first_tokens_, prefix, steps.rules.page_size);
    if (prefix.pages > 0 && steps.rules.pays(prefix)) add(steps, prefix, most_tokens);
  }
}

void SharedBlocks::add(const AttendSteps& steps, const SharedPrefix& prefix,
                       std::int64_t most_tokens) {
  parts.resize(steps.sequences.size());
  SharedBlock block{.sequence = prefix.sequences[0], .pages = prefix.pages};
  block.token_begin = block.token_end = std::ssize(tokens);
  for (const std::int32_t s : prefix.sequences) {
    const auto at = static_cast<std::size_t>(s);
    const std::int64_t queries = steps.sequences[at].queries;
    if (block.tokens() + queries > most_tokens) {
      blocks.push_back(block);
      block.token_begin = block.token_end;
    }
    parts[at] = {.block = static_cast<std::int32_t>(std::ssize(blocks)),
                 .token = static_cast<std::int32_t>(block.tokens()),
                 .pages = prefix.pages};
    for (std::int64_t q = 0; q < queries; ++q) tokens.push_back({first_tokens_[at] + q, s});
    block.token_end = std::ssize(tokens);
  }
  blocks.push_back(block);
}

}  // namespace kvmesh
