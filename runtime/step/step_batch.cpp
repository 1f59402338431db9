#include "runtime/step/step_batch.hpp"

#include <algorithm>
#include <utility>

#include "core/check.hpp"

namespace kvmesh {
namespace {

SequenceSize check_entry(const PageAllocator& allocator, const BatchEntry& entry,
                         bool explicit_positions) {
  require(entry.query_tokens >= -1, "plan: {} query tokens of sequence {}", entry.query_tokens,
          entry.sequence);
  const std::int64_t length = allocator.length(entry.sequence);
  const std::int64_t page_size = allocator.options().page_size;
  const std::int64_t most = kMaxLength / page_size * page_size;
  require(entry.append_tokens >= 0 && entry.append_tokens <= most - length,
          "plan: sequence {} has {} tokens and cannot take {} more: at most {} in pages of {}",
          entry.sequence, length, entry.append_tokens, most, page_size);
  const std::int64_t queries = queries_of(entry);
  require(explicit_positions || queries <= length + entry.append_tokens,
          "plan: sequence {} has {} tokens, fewer than its {} queries", entry.sequence,
          length + entry.append_tokens, queries);
  const std::int64_t end = length + entry.append_tokens;
  return {queries, end, entry.append_tokens, end - queries};
}

// Adds all ranks that take part to a sequence's tokens [begin, end).
void add_participants(const LocalSequence& pages, const Membership& members, std::int64_t begin,
                      std::int64_t end, Participation& participation) {
  const PageRank first = pages.first_rank();
  for (PageRank rank = first; rank.value < std::ssize(pages.held); ++rank.value) {
    if (rank != first && pages.held[static_cast<std::size_t>(rank.value)] == 0) continue;
    const Rank holder = members.holder(rank);
    for (std::int64_t token = begin; token < end; ++token) participation.add(token, holder);
  }
}

}  // namespace

std::int64_t queries_of(const BatchEntry& entry) {
  return entry.query_tokens < 0 ? entry.append_tokens : entry.query_tokens;
}

void check_positions(std::span<const std::int64_t> q_positions, std::int64_t queries) {
  require(q_positions.empty() || std::ssize(q_positions) == queries,
          "plan: {} query positions for {} queries", q_positions.size(), queries);
  for (std::int64_t position : q_positions) {
    require(position >= 0 && position < kMaxLength, "plan: query position {} is not in [0, {})",
            position, kMaxLength);
  }
}

void check_block_mask(int page_size, int q_heads, std::span<const SequenceSize> batch,
                      const BlockMask& mask) {
  const BlockMaskShape& shape = mask.shape();
  require(shape.kv_block == page_size, "plan: the block mask's kv_block is {}, the page size {}",
          shape.kv_block, page_size);
  require(shape.batch == 1 || shape.batch == std::ssize(batch),
          "plan: a block mask for {} batch rows, a batch of {}", shape.batch, batch.size());
  require(shape.heads == 1 || shape.heads == q_heads,
          "plan: a block mask for {} heads, a model of {}", shape.heads, q_heads);
  for (const SequenceSize& size : batch) {
    require(shape.q_len >= size.queries, "plan: a block mask for {} queries, a sequence has {}",
            shape.q_len, size.queries);
    require(shape.kv_len >= size.length, "plan: a block mask for {} keys, a sequence has {}",
            shape.kv_len, size.length);
  }
}

void check_limits(const StepLimits& limits, std::span<const BatchEntry> batch) {
  require(limits.sequences > 0 && limits.query_tokens > 0 && limits.pages >= 0,
          "plan: limits of {} sequences, {} query tokens, {} pages", limits.sequences,
          limits.query_tokens, limits.pages);
  require(limits.query_tokens <= kMaxLength / limits.sequences,
          "plan: limits of {} sequences with {} query tokens, at most {} together",
          limits.sequences, limits.query_tokens, kMaxLength);
  require(limits.pages <= kMaxLength, "plan: limits of {} pages, at most {}", limits.pages,
          kMaxLength);
  require(std::ssize(batch) <= limits.sequences, "plan: {} sequences, the limit is {}",
          batch.size(), limits.sequences);
  for (const BatchEntry& entry : batch) {
    const std::int64_t tokens = std::max(queries_of(entry), entry.append_tokens);
    require(tokens <= limits.query_tokens, "plan: sequence {} has {} tokens, the limit is {}",
            entry.sequence, tokens, limits.query_tokens);
  }
}

std::vector<SequenceSize> check_step(const PageAllocator& allocator, const CacheOptions& cache,
                                     std::span<const BatchEntry> batch, const StepRules& rules) {
  std::vector<SequenceSize> sizes;
  sizes.reserve(batch.size());
  std::int64_t queries = 0;
  for (const BatchEntry& entry : batch) {
    sizes.push_back(check_entry(allocator, entry, !rules.q_positions.empty()));
    // Queries are numbered in 32 bits.
    require(sizes.back().queries <= kMaxLength - queries,
            "plan: {} queries after {} others: a batch has at most {}", sizes.back().queries,
            queries, kMaxLength);
    queries += sizes.back().queries;
  }
  check_positions(rules.q_positions, queries);
  if (rules.block_mask) {
    check_block_mask(cache.page_size, cache.q_heads, sizes, *rules.block_mask);
  }
  std::span<const std::int64_t> positions = rules.q_positions;
  for (SequenceSize& size : sizes) {
    if (positions.empty() || size.queries == 0) continue;
    size.first_query = std::ranges::min(positions.first(static_cast<std::size_t>(size.queries)));
    positions = positions.subspan(static_cast<std::size_t>(size.queries));
  }
  if (rules.limits) check_limits(*rules.limits, batch);
  return sizes;
}

std::optional<PageRank> owner_of(const PageAllocator& allocator, const BatchEntry& entry,
                                 std::int64_t window) {
  const std::span<const PageId> table = allocator.pages(entry.sequence);
  const std::int64_t page_size = allocator.options().page_size, pages = std::ssize(table);
  const std::int64_t length = allocator.length(entry.sequence);
  const std::int64_t end = length + std::clamp<std::int64_t>(entry.append_tokens, 0, kMaxLength);
  std::int64_t first = 0;  // as slide_windows leaves it
  if (window > 0 && end > length) {
    const std::int64_t query = entry.query_tokens < 0 ? length : end - entry.query_tokens;
    first = std::max<std::int64_t>(std::min(query, length) - window + 1, 0) / page_size;
  }
  if (first == 0 && pages > 0 && table.front().valid()) return table.front().rank();
  std::optional<PageRank> lowest;
  for (std::int64_t i = first; i < std::min(pages, (end + page_size - 1) / page_size); ++i) {
    const PageId page = table[static_cast<std::size_t>(i)];
    if (page.valid() && (!lowest || page.rank() < *lowest)) lowest = page.rank();
  }
  return lowest;
}

void make_step_batch(const PageAllocator& allocator, LocalPages& pages,
                     std::span<const BatchEntry> batch, std::span<const SequenceSize> sizes,
                     std::span<const std::int64_t> q_positions, StepBatch& step) {
  const int page_size = allocator.options().page_size;
  step.restart(q_positions);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const SequenceId sequence = batch[i].sequence;
    const auto used = static_cast<std::size_t>((sizes[i].length + page_size - 1) / page_size);
    const std::span<const PageId> table = allocator.pages(sequence).first(used);
    LocalSequence& local = pages.update(sequence, table);
    const bool has_first = !table.empty() && table.front().valid();
    step.add({.sequence = sequence,
              .size = sizes[i],
              .pages = &local,
              .version = allocator.version(sequence),
              .counts_sinks = local.first_rank() == pages.me(),
              .owner = has_first ? std::optional(table.front().rank()) : std::nullopt});
  }
}

void StepBatch::set_members(const Membership& members) {
  members_ = &members;
  participation_.reset();
}

void StepBatch::restart(std::span<const std::int64_t> positions) {
  sequences_.clear();
  q_positions_.assign(positions.begin(), positions.end());
  query_tokens_ = append_tokens_ = 0;
  participation_.reset();
}

void StepBatch::add(const SequenceStep& sequence) {
  sequences_.push_back(sequence);
  query_tokens_ += sequence.size.queries;
  append_tokens_ += sequence.size.appended;
  participation_.reset();
}

std::int64_t StepBatch::size_bytes() const {
  const std::size_t words = participation_ ? participation_->words().size() : 0;
  return static_cast<std::int64_t>(sequences_.capacity() * sizeof(SequenceStep) +
                                   q_positions_.capacity() * sizeof(std::int64_t) +
                                   words * sizeof(std::uint64_t));
}

const Participation& StepBatch::participation() const {
  if (participation_) return *participation_;
  Participation all(query_tokens_, members_->size());
  std::int64_t token = 0;
  for (const SequenceStep& sequence : sequences_) {
    const std::int64_t end = token + sequence.size.queries;
    add_participants(*sequence.pages, *members_, token, end, all);
    const Rank owner = members_->holder(sequence.owner.value_or(sequence.pages->first_rank()));
    for (; token < end; ++token) all.set_owner(token, owner);
  }
  return participation_.emplace(std::move(all));
}

AttentionBatch attention_batch(const StepBatch& step) {
  AttentionBatch batch{.q_indptr = {0},
                       .kv_lens = {},
                       .q_positions = {step.q_positions().begin(), step.q_positions().end()},
                       .page_indptr = {0},
                       .pages = {},
                       .counts_sinks = {}};
  for (const SequenceStep& sequence : step.sequences()) {
    const std::vector<LocalPage>& pages = sequence.pages->pages;
    batch.pages.insert(batch.pages.end(), pages.begin(), pages.end());
    batch.kv_lens.push_back(sequence.size.length);
    batch.counts_sinks.push_back(sequence.counts_sinks);
    batch.q_indptr.push_back(batch.q_indptr.back() + sequence.size.queries);
    batch.page_indptr.push_back(std::ssize(batch.pages));
  }
  return batch;
}

void set_token_slots(const StepBatch& step, int page_size, std::vector<TokenSlot>& slots) {
  slots.clear();
  slots.reserve(static_cast<std::size_t>(step.append_tokens()));
  for (const SequenceStep& sequence : step.sequences()) {
    const std::vector<LocalPage>& pages = sequence.pages->pages;
    const SequenceSize& size = sequence.size;
    const std::int64_t first = size.length - size.appended;
    auto page = std::ranges::lower_bound(pages, first / page_size, {}, &LocalPage::logical);
    for (std::int64_t position = first; position < size.length; ++position) {
      while (page != pages.end() && page->logical < position / page_size) ++page;
      const bool is_mine = page != pages.end() && page->logical == position / page_size;
      slots.push_back(is_mine
                          ? TokenSlot{page->page, static_cast<std::int32_t>(position % page_size)}
                          : TokenSlot{});
    }
  }
}

namespace {

// Returns the blocks of a row, partial and full, whose pages are in `pages`, in logical order.
std::vector<LocalBlock> local_blocks(const BlockRowView& row, std::span<const LocalPage> pages) {
  std::vector<LocalBlock> blocks;
  const auto add = [&](std::span<const std::int32_t> logicals, bool full) {
    auto page = pages.begin();
    for (std::int32_t logical : logicals) {
      page = std::ranges::lower_bound(page, pages.end(), logical, {}, &LocalPage::logical);
      if (page == pages.end()) return;
      if (page->logical == logical) blocks.push_back({page->page, logical, full});
    }
  };
  add(row.partial, false);
  const auto listed_partial = std::ssize(blocks);
  add(row.full, true);
  std::ranges::inplace_merge(blocks, blocks.begin() + listed_partial, {}, &LocalBlock::logical);
  return blocks;
}

}  // namespace

LocalBlockMask local_block_mask(const StepBatch& step, const BlockMask& mask) {
  const BlockMaskShape& shape = mask.shape();
  LocalBlockMask local(std::ssize(step.sequences()), shape.heads, shape.q_blocks(), shape.q_block);
  for (std::int64_t b = 0; b < local.batch(); ++b) {
    const std::span<const LocalPage> pages =
        step.sequences()[static_cast<std::size_t>(b)].pages->pages;
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
        local.add_row(local_blocks(mask.row(b, h, q), pages));
      }
    }
  }
  return local;
}

}  // namespace kvmesh
