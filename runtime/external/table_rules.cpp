#include "runtime/external/table_rules.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "core/checked.hpp"

namespace kvmesh {
namespace {

using Entries = std::span<const std::int32_t>;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Sequence b's part of `list`, which has an element per entry.
Entries entries_of(const PageTables& tables, Entries list, std::int64_t b) {
  if (tables.row_length > 0) {
    return list.subspan(index(b * tables.row_length), index(tables.row_length));
  }
  const std::int64_t begin = tables.indptr[index(b)], end = tables.indptr[index(b + 1)];
  return list.subspan(index(begin), index(end - begin));
}

void check_indptr(const char* what, Entries indptr, std::size_t batch) {
  require(indptr.size() == batch + 1 && indptr.front() == 0 && std::ranges::is_sorted(indptr),
          "page tables: {} of {} sequences must be {} ascending numbers, the first 0", what, batch,
          batch + 1);
}

void check_indices(const PageTables& tables) {
  const std::size_t batch = tables.kv_lens.size();
  require(tables.row_length >= 0, "page tables: rows of {} entries", tables.row_length);
  if (tables.row_length == 0) {
    check_indptr("indptr", tables.indptr, batch);
    require(std::cmp_equal(tables.indices.size(), tables.indptr.back()),
            "page tables: indptr ends at {}, there are {} indices", tables.indptr.back(),
            tables.indices.size());
  } else {
    const std::int64_t entries =
        checked_product("page tables", {static_cast<std::int64_t>(batch), tables.row_length});
    require(tables.indptr.empty() && std::cmp_equal(tables.indices.size(), entries),
            "page tables: {} rows of {} entries, and {} indices or an indptr", batch,
            tables.row_length, tables.indices.size());
  }
  require(!tables.logical || tables.logical->size() == tables.indices.size(),
          "page tables: {} logical pages for {} indices",
          tables.logical ? tables.logical->size() : 0, tables.indices.size());
}

void check_extents(const PageTables& tables) {
  constexpr std::int64_t kMostSequences = std::int64_t{1} << SequenceId::kSlotBits;
  const std::size_t batch = tables.kv_lens.size();
  check_indptr("q_indptr", tables.q_indptr, batch);
  const std::int64_t queries = tables.q_indptr.back();
  require(std::cmp_less(batch, kMostSequences) && queries <= kMaxLength,
          "page tables: {} sequences with {} queries", batch, queries);
  require(tables.appended.empty() || tables.appended.size() == batch,
          "page tables: `appended` has {} sequences of {}", tables.appended.size(), batch);
  check_indices(tables);
  require(tables.list_length >= 0 && tables.list_length <= kMaxLength,
          "page tables: token lists of {}", tables.list_length);
  require(std::cmp_equal(tables.token_lists.size(), queries * tables.list_length),
          "page tables: {} positions for {} queries with lists of {}", tables.token_lists.size(),
          queries, tables.list_length);
  require(tables.list_length == 0 || queries < kMostSequences, "page tables: {} token lists",
          queries);
}

void check_size(const TableRules& rules, const SequenceSize& size, std::int64_t b,
                bool explicit_positions) {
  const std::int64_t most = kMaxLength / rules.page_size * rules.page_size;
  require(size.length >= 0 && size.length <= most,
          "page tables: sequence {} has {} tokens: at most {} in pages of {}", b, size.length, most,
          rules.page_size);
  require(size.appended >= 0 && size.appended <= size.length,
          "page tables: sequence {} has {} tokens, of which {} are appended", b, size.length,
          size.appended);
  require(explicit_positions || size.queries <= size.length,
          "page tables: sequence {} has {} tokens, fewer than its {} queries", b, size.length,
          size.queries);
}

void check_page(const TableRules& rules, std::int64_t b, std::int32_t page) {
  require(page >= 0 && page < rules.pages, "page tables: page {} of sequence {}, in a pool of {}",
          page, b, rules.pages);
}

void check_listed(const TableRules& rules, const TableRow& row, std::int64_t b) {
  std::int64_t last = -1;
  for (std::size_t i = 0; i < row.pages.size(); ++i) {
    require(row.logical[i] > last, "page tables: logical page {} of sequence {} follows {}",
            row.logical[i], b, last);
    last = row.logical[i];
    if (last * rules.page_size < row.size.length) check_page(rules, b, row.pages[i]);
  }
}

void check_by_turns(const TableRules& rules, const TableRow& row, std::int64_t b) {
  const std::int64_t tokens = tokens_of_rank(rules, rules.me, row.size.length);
  const std::int64_t used = (tokens + rules.page_size - 1) / rules.page_size;
  require(used <= std::ssize(row.pages),
          "page tables: sequence {} has {} tokens, {} pages of them on rank {}, and {} entries", b,
          row.size.length, used, rules.me.value, row.pages.size());
  for (std::int32_t page : row.pages.first(index(used))) check_page(rules, b, page);
}

void check_lists(const PageTables& tables, const TableRow& row, std::int64_t b) {
  const Entries positions = tables.token_lists.subspan(
      index(row.first_query * tables.list_length), index(row.size.queries * tables.list_length));
  for (std::int32_t position : positions) {
    require(position >= -1 && position < row.size.length,
            "page tables: a token list has position {} of sequence {}, which has {} tokens",
            position, b, row.size.length);
  }
}

}  // namespace

TableRow row_of(const PageTables& tables, std::int64_t b) {
  const std::int64_t first = tables.q_indptr[index(b)];
  TableRow row{.size = {.queries = tables.q_indptr[index(b + 1)] - first,
                        .length = tables.kv_lens[index(b)],
                        .appended = tables.appended.empty() ? 0 : tables.appended[index(b)]},
               .first_query = first,
               .pages = entries_of(tables, tables.indices, b),
               .is_listed = tables.logical.has_value()};
  if (row.is_listed) row.logical = entries_of(tables, *tables.logical, b);
  return row;
}

PageRank rank_of(const TableRules& rules, std::int64_t position) {
  return {static_cast<std::int32_t>(position / rules.turn % rules.ranks)};
}

std::int64_t tokens_of_rank(const TableRules& rules, PageRank rank, std::int64_t length) {
  const std::int64_t round = rules.turn * rules.ranks;
  return length / round * rules.turn +
         std::clamp(length % round - rank.value * rules.turn, std::int64_t{0}, rules.turn);
}

std::int64_t position_of(const TableRules& rules, PageRank rank, std::int64_t mine) {
  return (mine / rules.turn * rules.ranks + rank.value) * rules.turn + mine % rules.turn;
}

std::vector<BatchEntry> rows_of(const PageTables& tables) {
  std::vector<BatchEntry> rows;
  for (std::int64_t b = 0; b < std::ssize(tables.kv_lens); ++b) {
    const SequenceSize size = row_of(tables, b).size;
    rows.push_back({SequenceId(0, 0, static_cast<std::uint32_t>(b)), size.appended, size.queries});
  }
  return rows;
}

std::vector<SequenceSize> check_tables(const TableRules& rules, const PageTables& tables,
                                       const StepRules& step) {
  check_extents(tables);
  const bool has_lists = tables.list_length > 0;
  require(!tables.logical || has_lists || rules.units.whole(),
          "page tables: logical pages, with an interleave of {} tokens", rules.turn);
  require(!has_lists || !step.block_mask, "page tables: token lists take no block mask");
  std::vector<SequenceSize> sizes;
  for (std::int64_t b = 0; b < std::ssize(tables.kv_lens); ++b) {
    const TableRow row = row_of(tables, b);
    check_size(rules, row.size, b, !step.q_positions.empty());
    row.is_listed ? check_listed(rules, row, b) : check_by_turns(rules, row, b);
    if (!has_lists) {
      sizes.push_back(row.size);
      continue;
    }
    require(row.size.appended == 0, "page tables: a plan with token lists appends nothing");
    check_lists(tables, row, b);
    sizes.insert(sizes.end(), index(row.size.queries),
                 {.queries = 1, .length = tables.list_length});
  }
  check_positions(step.q_positions, tables.q_indptr.back());
  if (step.block_mask) {
    check_block_mask(rules.units.tokens, rules.model_heads, sizes, *step.block_mask);
  }
  if (step.limits) check_limits(*step.limits, rows_of(tables));
  return sizes;
}

}  // namespace kvmesh
