// The blocks of a caller's batch, with a copy of its pages; and the tasks and merges of any blocks
// by their numbers.
#include <algorithm>
#include <iterator>

#include "kernels/cpu/plan/work_blocks.hpp"

namespace kvmesh {
namespace {

template <class T>
std::int64_t bytes_of(const std::vector<T>& list) {
  return static_cast<std::int64_t>(list.capacity() * sizeof(T));
}

}  // namespace

WorkBlocks make_work_blocks(const AttentionShape& shape, const AttentionBatch& batch,
                            const AttentionOptions& options) {
  check_attention(shape, batch);
  WorkBlocks work;
  work.pages = batch.pages;
  std::vector<AttendSequence> sequences;
  for (std::size_t s = 0; s < batch.kv_lens.size(); ++s) {
    const auto first = static_cast<std::size_t>(batch.page_indptr[s]);
    const auto pages = static_cast<std::size_t>(batch.page_indptr[s + 1]) - first;
    sequences.push_back({.queries = batch.q_indptr[s + 1] - batch.q_indptr[s],
                         .kv_len = batch.kv_lens[s],
                         .pages = std::span(work.pages).subspan(first, pages),
                         .counts_sinks = batch.counts_sinks.empty() || batch.counts_sinks[s]});
  }
  const SharedPrefixRules rules = shared_prefix_rules(shape);
  std::vector<SharedPrefix> shared;
  if (options.shares_prefixes) {
    shared = find_shared_prefixes(sequences, rules);
  }
  plan_work_blocks(shape, {sequences, batch.q_positions, shared, rules}, options, work);
  return work;
}

WorkTask WorkBlocks::task(std::int64_t task) const {
  const auto after = std::ranges::upper_bound(blocks, task, {}, &WorkBlock::first_task);
  const WorkBlock& block = *std::prev(after);
  const auto in_block = static_cast<std::int32_t>(task - block.first_task);
  return {block.of_head(block.kv_head + in_block / block.splits, group), in_block % block.splits};
}

WorkBlock WorkBlocks::merged_block(std::int64_t merge) const {
  // Blocks without merges begin where the next one with some does, so the last is that.
  const auto after = std::ranges::upper_bound(blocks, merge, {}, &WorkBlock::first_merge);
  const WorkBlock& block = *std::prev(after);
  return block.of_head(block.kv_head + static_cast<std::int32_t>(merge - block.first_merge), group);
}

std::int64_t WorkBlocks::size_bytes() const {
  return bytes_of(blocks) + bytes_of(ranges) + bytes_of(head_classes) + bytes_of(shared.tokens) +
         bytes_of(positions) + bytes_of(pages);
}

}  // namespace kvmesh
