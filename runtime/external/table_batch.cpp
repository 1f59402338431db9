#include "runtime/external/table_batch.hpp"

#include <algorithm>

#include "runtime/external/table_rules.hpp"

namespace kvmesh {
namespace {

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

LocalPage local_unit(std::int64_t unit, std::int64_t logical) {
  return {static_cast<std::int32_t>(unit), static_cast<std::int32_t>(logical)};
}

void set_listed(const TableRules& rules, const TableRow& row, LocalSequence& local) {
  for (std::size_t i = 0; i < row.pages.size(); ++i) {
    if (row.logical[i] * rules.page_size >= row.size.length) break;
    local.pages.push_back({row.pages[i], row.logical[i]});
  }
  std::ranges::fill(local.held, row.size.length > 0);
}

void set_by_turns(const TableRules& rules, const TableRow& row, LocalSequence& local) {
  const PageUnits& units = rules.units;
  const std::int64_t tokens = tokens_of_rank(rules, rules.me, row.size.length);
  for (std::int64_t first = 0; first < tokens; first += units.tokens) {
    const std::int64_t page = row.pages[index(first / rules.page_size)];
    local.pages.push_back(local_unit(units.unit_of(page, first % rules.page_size / units.tokens),
                                     position_of(rules, rules.me, first) / units.tokens));
  }
  for (PageRank rank{0}; rank.value < rules.ranks; ++rank.value) {
    local.held[index(rank.value)] = tokens_of_rank(rules, rank, row.size.length) > 0;
  }
}

/// Returns the unit of the token on this rank, if it has it; units are of one token.
std::optional<std::int64_t> unit_of_token(const TableRules& rules, const TableRow& row,
                                          std::int64_t position) {
  std::int64_t entry = 0, in_page = position % rules.page_size;
  if (row.is_listed) {
    const auto found = std::ranges::lower_bound(row.logical, position / rules.page_size);
    if (found == row.logical.end() || *found != position / rules.page_size) return std::nullopt;
    entry = found - row.logical.begin();
  } else {
    if (rank_of(rules, position) != rules.me) return std::nullopt;
    const std::int64_t mine = tokens_of_rank(rules, rules.me, position);
    entry = mine / rules.page_size;
    in_page = mine % rules.page_size;
  }
  return rules.units.unit_of(row.pages[index(entry)], in_page);
}

void set_tokens(const TableRules& rules, const TableRow& row, std::vector<std::int32_t>& positions,
                LocalSequence& local) {
  std::ranges::sort(positions);
  const auto repeated = std::ranges::unique(positions);
  positions.erase(repeated.begin(), repeated.end());
  for (std::int32_t position : positions) {
    if (position < 0) continue;
    if (!row.is_listed) local.held[index(rank_of(rules, position).value)] = 1;
    if (const auto unit = unit_of_token(rules, row, position)) {
      local.pages.push_back(local_unit(*unit, position));
    }
  }
  if (row.is_listed) std::ranges::fill(local.held, row.size.length > 0);
}

}  // namespace

std::vector<SequenceSize> TableBatch::check(const TableRules& rules, const PageTables& tables,
                                            const StepRules& step) {
  return check_tables(rules, tables, step);
}

std::vector<BatchEntry> TableBatch::entries(const PageTables& tables) {
  if (tables.list_length == 0) return rows_of(tables);
  std::vector<BatchEntry> entries;
  for (std::int32_t q = 0; q < tables.q_indptr.back(); ++q) {
    entries.push_back({SequenceId(0, 0, static_cast<std::uint32_t>(q)), 0, 1});
  }
  return entries;
}

LocalSequence& TableBatch::next_pages(const TableRules& rules) {
  const std::size_t at = step_.sequences().size();
  if (at == local_.size()) local_.emplace_back();
  LocalSequence& local = local_[at];
  local.pages.clear();
  local.held.assign(index(rules.ranks), 0);
  return local;
}

void TableBatch::add(const TableRules& rules, const SequenceSize& size, LocalSequence& pages) {
  step_.add({.sequence = SequenceId(0, 0, static_cast<std::uint32_t>(step_.sequences().size())),
             .size = size,
             .pages = &pages,
             .counts_sinks = pages.first_rank() == rules.me});
}

void TableBatch::set(const TableRules& rules, const PageTables& tables,
                     std::span<const std::int64_t> q_positions) {
  step_.set_members(*rules.members);
  step_.restart(q_positions);
  std::vector<std::int32_t> positions;
  for (std::int64_t b = 0; b < std::ssize(tables.kv_lens); ++b) {
    const TableRow row = row_of(tables, b);
    if (tables.list_length == 0) {
      LocalSequence& local = next_pages(rules);
      row.is_listed ? set_listed(rules, row, local) : set_by_turns(rules, row, local);
      add(rules, row.size, local);
      continue;
    }
    for (std::int64_t i = 0; i < row.size.queries; ++i) {
      const auto list = tables.token_lists.subspan(
          index((row.first_query + i) * tables.list_length), index(tables.list_length));
      positions.assign(list.begin(), list.end());
      LocalSequence& local = next_pages(rules);
      set_tokens(rules, row, positions, local);
      add(rules, {.queries = 1, .length = row.size.length}, local);
      // A query is a sequence of its own now, and no longer the i-th of the newest.
      if (q_positions.empty()) {
        step_.add_position(row.size.length - row.size.queries + i);
      }
    }
  }
}

}  // namespace kvmesh
