#include "runtime/step_batch.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace kvmesh {
namespace {

// Positions are int32 in mods; lengths stay below.
constexpr std::int64_t kMaxLength = (std::int64_t{1} << 31) - 1;

std::int64_t query_tokens(const BatchEntry& entry) {
  return entry.query_tokens < 0 ? entry.append_tokens : entry.query_tokens;
}

std::int64_t check_entry(const PageAllocator& allocator, const BatchEntry& entry,
                         bool explicit_positions) {
  const std::int64_t length = allocator.length(entry.sequence);
  require(entry.append_tokens >= 0 && entry.append_tokens <= kMaxLength - length,
          "plan: sequence {} has {} tokens and cannot take {} more", entry.sequence.value, length,
          entry.append_tokens);
  const std::int64_t queries = query_tokens(entry);
  require(explicit_positions || queries <= length + entry.append_tokens,
          "plan: sequence {} has {} tokens, fewer than its {} queries", entry.sequence.value,
          length + entry.append_tokens, queries);
  return queries;
}

void check_block_mask(const CacheOptions& cache, std::size_t batch, std::int64_t max_queries,
                      const BlockMask& mask) {
  const BlockMaskShape& shape = mask.shape();
  require(shape.kv_block == cache.page_size,
          "plan: the block mask's kv_block is {}, the page size {}", shape.kv_block,
          cache.page_size);
  require(shape.batch == 1 || shape.batch == static_cast<std::int64_t>(batch),
          "plan: a block mask for {} batch rows, a batch of {}", shape.batch, batch);
  require(shape.heads == 1 || shape.heads == cache.q_heads,
          "plan: a block mask for {} heads, a model of {}", shape.heads, cache.q_heads);
  require(shape.q_len >= max_queries, "plan: a block mask for {} queries, a sequence has {}",
          shape.q_len, max_queries);
}

// Local pages of one sequence, and which ranks hold any page that has keys.
void add_pages(std::span<const PageId> pages, std::int64_t kv_len, int page_size, Rank me,
               AttentionBatch& batch, std::vector<bool>& holders) {
  const std::int64_t used = (kv_len + page_size - 1) / page_size;
  for (std::int64_t logical = 0; logical < used; ++logical) {
    const PageId page = pages[static_cast<std::size_t>(logical)];
    holders[static_cast<std::size_t>(page.rank().value)] = true;
    if (page.rank() == me) {
      batch.pages.push_back({page.index(), static_cast<std::int32_t>(logical)});
    }
  }
}

void add_slots(std::span<const PageId> pages, std::int64_t begin, std::int64_t end, int page_size,
               Rank me, std::vector<TokenSlot>& slots) {
  for (std::int64_t position = begin; position < end; ++position) {
    const PageId page = pages[static_cast<std::size_t>(position / page_size)];
    slots.push_back(page.rank() == me
                        ? TokenSlot{page.index(), static_cast<std::int32_t>(position % page_size)}
                        : TokenSlot{});
  }
}

}  // namespace

void check_step(const PageAllocator& allocator, const CacheOptions& cache,
                std::span<const BatchEntry> batch, const PlanOptions& options) {
  std::int64_t queries = 0, max_queries = 0;
  for (const BatchEntry& entry : batch) {
    const std::int64_t mine = check_entry(allocator, entry, !options.q_positions.empty());
    queries += mine;
    max_queries = std::max(max_queries, mine);
  }
  require(options.q_positions.empty() || std::ssize(options.q_positions) == queries,
          "plan: {} query positions for {} queries", options.q_positions.size(), queries);
  for (std::int64_t position : options.q_positions) {
    require(position >= 0 && position <= kMaxLength, "plan: query position {} is not in [0, {}]",
            position, kMaxLength);
  }
  if (options.block_mask) {
    check_block_mask(cache, batch.size(), max_queries, *options.block_mask);
  }
}

StepBatch make_step_batch(const PageAllocator& allocator, Rank me,
                          std::span<const BatchEntry> batch, const PlanOptions& options) {
  const int ranks = allocator.options().ranks, page_size = allocator.options().page_size;
  StepBatch step;
  AttentionBatch& attention = step.attention;
  attention.q_indptr = {0};
  attention.page_indptr = {0};
  attention.q_positions = options.q_positions;
  std::vector<std::vector<bool>> holders;
  for (const BatchEntry& entry : batch) {
    const std::int64_t length = allocator.length(entry.sequence);
    const std::span<const PageId> pages = allocator.pages(entry.sequence);
    holders.emplace_back(static_cast<std::size_t>(ranks));
    add_pages(pages, length, page_size, me, attention, holders.back());
    add_slots(pages, length - entry.append_tokens, length, page_size, me, step.slots);
    attention.kv_lens.push_back(length);
    attention.q_indptr.push_back(attention.q_indptr.back() + query_tokens(entry));
    attention.page_indptr.push_back(std::ssize(attention.pages));
  }
  step.participation = Participation(attention.q_indptr.back(), ranks);
  for (std::size_t s = 0; s < batch.size(); ++s) {
    for (int rank = 0; rank < ranks; ++rank) {
      if (!holders[s][static_cast<std::size_t>(rank)]) continue;
      for (std::int64_t t = attention.q_indptr[s]; t < attention.q_indptr[s + 1]; ++t) {
        step.participation.add(t, {rank});
      }
    }
  }
  return step;
}

LocalBlockMask local_block_mask(const PageAllocator& allocator, Rank me,
                                std::span<const BatchEntry> batch, const BlockMask& mask) {
  std::vector<std::span<const PageId>> tables;
  const int page_size = allocator.options().page_size;
  for (const BatchEntry& entry : batch) {
    const std::int64_t length = allocator.length(entry.sequence);
    const std::int64_t used = (length + page_size - 1) / page_size;
    tables.push_back(allocator.pages(entry.sequence).first(static_cast<std::size_t>(used)));
  }
  return convert_to_local(mask, tables, page_size, me);
}

}  // namespace kvmesh
