// The work of a caller's batch, with its checks and a copy of its pages; and the tasks and merges
// of any work by their numbers.
#include <algorithm>
#include <iterator>
#include <limits>

#include "core/check.hpp"
#include "kernels/attend_work.hpp"

namespace kvmesh {
namespace {

// Positions are int32, and so is the end of a range of them.
constexpr std::int64_t kMaxPosition = std::numeric_limits<std::int32_t>::max();

void check_indptr(const char* what, const std::vector<std::int64_t>& indptr, std::size_t batch,
                  std::int64_t last) {
  require(indptr.size() == batch + 1 && indptr.front() == 0 && indptr.back() == last &&
              std::is_sorted(indptr.begin(), indptr.end()),
          "attention: {} must rise from 0 to {} in {} steps", what, last, batch);
}

void check_pages(const AttentionShape& shape, const AttentionBatch& batch, std::size_t s) {
  const std::int64_t kv_len = batch.kv_lens[s];
  require(kv_len >= 0 && kv_len <= kMaxPosition,
          "attention: sequence {} has length {}, which is not in [0, 2^31)", s, kv_len);
  for (std::int64_t i = batch.page_indptr[s]; i < batch.page_indptr[s + 1]; ++i) {
    const LocalPage& page = batch.pages[static_cast<std::size_t>(i)];
    const bool rising = i == batch.page_indptr[s] ||
                        batch.pages[static_cast<std::size_t>(i - 1)].logical < page.logical;
    require(page.page >= 0 && page.logical >= 0 && rising,
            "attention: the pages of sequence {} must be valid and in rising logical order", s);
    require(page.logical < kMostPages, "attention: sequence {} has logical page {} of at most {}",
            s, page.logical, kMostPages);
    require(static_cast<std::int64_t>(page.logical) * shape.page_size < kv_len,
            "attention: logical page {} of sequence {} lies past its length {}", page.logical, s,
            kv_len);
  }
}

template <class T>
std::int64_t bytes_of(const std::vector<T>& list) {
  return static_cast<std::int64_t>(list.capacity() * sizeof(T));
}

}  // namespace

void check_attention(const AttentionShape& shape, const AttentionBatch& batch) {
  require(shape.q_heads > 0 && shape.kv_heads > 0 && shape.q_heads % shape.kv_heads == 0,
          "attention: {} query heads do not divide over {} kv heads", shape.q_heads,
          shape.kv_heads);
  require(shape.k_dim > 0 && shape.v_dim > 0 && shape.k_dim <= kMaxHeadDim &&
              shape.v_dim <= kMaxHeadDim,
          "attention: head dims must be in [1, {}], are {} (k) and {} (v)", kMaxHeadDim,
          shape.k_dim, shape.v_dim);
  require(shape.page_size > 0, "attention: page_size is {}, must be at least 1", shape.page_size);
  const std::size_t sequences = batch.kv_lens.size();
  require(!batch.q_indptr.empty(), "attention: q_indptr is empty");
  check_indptr("q_indptr", batch.q_indptr, sequences, batch.q_indptr.back());
  require(batch.q_indptr.back() <= kMaxPosition, "attention: {} queries are too many for one plan",
          batch.q_indptr.back());
  check_indptr("page_indptr", batch.page_indptr, sequences,
               static_cast<std::int64_t>(batch.pages.size()));
  require(batch.q_positions.empty() ||
              static_cast<std::int64_t>(batch.q_positions.size()) == batch.q_indptr.back(),
          "attention: {} query positions for {} queries", batch.q_positions.size(),
          batch.q_indptr.back());
  for (std::int64_t position : batch.q_positions) {
    require(position > -kMaxPosition && position < kMaxPosition,
            "attention: query position {} does not fit in int32", position);
  }
  require(batch.counts_sinks.empty() || batch.counts_sinks.size() == sequences,
          "attention: counts_sinks has {} sequences of {}", batch.counts_sinks.size(), sequences);
  for (std::size_t s = 0; s < sequences; ++s) check_pages(shape, batch, s);
}

AttendWork make_attend_work(const AttentionShape& shape, const AttentionBatch& batch,
                            const AttentionOptions& options) {
  check_attention(shape, batch);
  AttendWork work;
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
  plan_attend_work(shape, {sequences, batch.q_positions, shared, rules}, options, work);
  return work;
}

WorkTask AttendWork::task(std::int64_t task) const {
  const auto after = std::ranges::upper_bound(blocks, task, {}, &WorkBlock::first_task);
  const WorkBlock& block = *std::prev(after);
  const auto in_block = static_cast<std::int32_t>(task - block.first_task);
  return {block.of_head(block.kv_head + in_block / block.splits, group), in_block % block.splits};
}

WorkBlock AttendWork::merged_block(std::int64_t merge) const {
  // Blocks without merges begin where the next one with some does, so the last is that.
  const auto after = std::ranges::upper_bound(blocks, merge, {}, &WorkBlock::first_merge);
  const WorkBlock& block = *std::prev(after);
  return block.of_head(block.kv_head + static_cast<std::int32_t>(merge - block.first_merge), group);
}

std::int64_t AttendWork::size_bytes() const {
  return bytes_of(blocks) + bytes_of(ranges) + bytes_of(head_classes) + bytes_of(shared.tokens) +
         bytes_of(positions) + bytes_of(pages);
}

}  // namespace kvmesh
