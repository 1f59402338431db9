// The page tables of a cache's sequences, as an engine has them.
#include "core/check.hpp"
#include "kvmesh/external_pool.hpp"

namespace kvmesh {

CacheTables::CacheTables(const KvCache& cache, PageRank pool, std::span<const BatchEntry> batch,
                         int group)
    : q_indptr_{0}, indptr_{0} {
  const PageAllocator& allocator = cache.allocator(group);
  const std::int64_t page_size = allocator.options().page_size;
  const auto number = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
  for (const BatchEntry& entry : batch) {
    const std::int64_t length = allocator.length(entry.sequence);
    require(entry.append_tokens == 0 && entry.query_tokens >= 0 && entry.query_tokens <= length,
            "page tables: {} appended tokens and {} queries of sequence {}", entry.append_tokens,
            entry.query_tokens, entry.sequence);
    const auto used = static_cast<std::size_t>((length + page_size - 1) / page_size);
    const std::span<const PageId> table = allocator.pages(entry.sequence).first(used);
    for (std::size_t logical = 0; logical < table.size(); ++logical) {
      if (table[logical].rank() != pool) continue;
      indices_.push_back(table[logical].index());
      logical_.push_back(number(static_cast<std::int64_t>(logical)));
    }
    q_indptr_.push_back(number(q_indptr_.back() + entry.query_tokens));
    kv_lens_.push_back(number(length));
    indptr_.push_back(number(std::ssize(indices_)));
  }
}

PageTables CacheTables::view() const {
  return {.q_indptr = q_indptr_,
          .kv_lens = kv_lens_,
          .indptr = indptr_,
          .indices = indices_,
          .logical = std::span(logical_)};
}

}  // namespace kvmesh
