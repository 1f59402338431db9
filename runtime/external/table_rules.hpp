// How page tables are read: rows, the ownership of tokens, and what is checked.
#pragma once

#include <span>
#include <vector>

#include "runtime/external/table_batch.hpp"

namespace kvmesh {

/// One sequence of page tables.
struct TableRow {
  SequenceSize size{};
  std::int64_t first_query = 0;
  std::span<const std::int32_t> pages{};
  std::span<const std::int32_t> logical{};  ///< as many, if `is_listed`
  bool is_listed = false;
};
/// REQUIRES: checked tables.
TableRow row_of(const PageTables& tables, std::int64_t b);
/// The rows as the entries of a batch, with the row's number as sequence; also with token lists.
std::vector<BatchEntry> rows_of(const PageTables& tables);

/// The rule of turns: which rank has a position, how many of a sequence's first `length` positions
/// a rank has, and which position a rank's token number `mine` is.
PageRank rank_of(const TableRules& rules, std::int64_t position);
std::int64_t tokens_of_rank(const TableRules& rules, PageRank rank, std::int64_t length);
std::int64_t position_of(const TableRules& rules, PageRank rank, std::int64_t mine);

/// Checks tables and options, and returns the sizes of the batch's sequences; with token lists
/// those of its queries.
/// @throws InvalidArgument.
std::vector<SequenceSize> check_tables(const TableRules& rules, const PageTables& tables,
                                       const StepRules& step);

}  // namespace kvmesh
