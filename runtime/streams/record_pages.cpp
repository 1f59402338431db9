#include "runtime/streams/record_pages.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace kvmesh {

std::vector<RecordRun> runs_of(const CacheGroup& group, SequenceId sequence, std::int64_t first,
                               std::int64_t tokens) {
  const std::span<const PageId> pages = group.allocator.pages(sequence);
  const std::int64_t page_size = group.options.page_size;
  const std::int64_t last_row = group.has_states() ? 0 : page_size - 1;
  std::vector<RecordRun> runs;
  for (std::int64_t at = 0; at < tokens; at += runs.back().tokens) {
    const std::int64_t logical = (first + at) / page_size;
    const std::int64_t token = (first + at) % page_size;
    const PageId page = pages[static_cast<std::size_t>(logical)];
    require(page.valid(), "sequence stream: the sequence has no page for token {} any more",
            first + at);
    runs.push_back({.rank = page.rank(),
                    .token = at,
                    .tokens = std::min(page_size - token, tokens - at),
                    .page = page.index(),
                    .page_token = static_cast<std::int32_t>(std::min(token, last_row))});
  }
  return runs;
}

std::vector<PageMove> moves_on(PageRank rank, std::span<const RecordRun> runs) {
  std::vector<PageMove> moves;
  for (const RecordRun& run : runs) {
    if (run.rank != rank) continue;
    moves.push_back({.source = run.page,
                     .destination = run.page,
                     .source_token = run.page_token,
                     .destination_token = run.page_token,
                     .tokens = static_cast<std::int32_t>(run.tokens)});
  }
  return moves;
}

}  // namespace kvmesh
