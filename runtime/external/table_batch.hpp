// An engine's page tables as the batch of a step.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "kvmesh/external_pool.hpp"
#include "runtime/external/page_units.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {

/// The pool and ranks by which page tables are read.
struct TableRules {
  std::int64_t pages = 0;      ///< of the pool
  std::int64_t page_size = 0;  ///< of the pool
  PageUnits units{};           ///< the pages that kernels see
  /// Tokens that follow one another on one rank before the next rank's begin.
  std::int64_t turn = 1;
  int ranks = 1;
  PageRank me{};
  const Membership* members = nullptr;  ///< of the kv ranks; the mesh's
  int model_heads = 0;                  ///< query heads of the model
};

/// The sequences of a step over page tables.
class TableBatch {
 public:
  /// Checks tables and options. Changes nothing.
  /// @throws InvalidArgument.
  static std::vector<SequenceSize> check(const TableRules& rules, const PageTables& tables,
                                         const StepRules& step);
  /// The entries of a batch, with the row as sequence; with token lists one per query. REQUIRES:
  /// checked tables.
  static std::vector<BatchEntry> entries(const PageTables& tables);

  /// REQUIRES: checked tables.
  void set(const TableRules& rules, const PageTables& tables,
           std::span<const std::int64_t> q_positions);
  StepBatch& step() { return step_; }
  const StepBatch& step() const { return step_; }

 private:
  /// Returns the pages of the next sequence, still empty.
  LocalSequence& next_pages(const TableRules& rules);
  void add(const TableRules& rules, const SequenceSize& size, LocalSequence& pages);

  StepBatch step_;
  std::deque<LocalSequence> local_;  // `step_` points into it
};

}  // namespace kvmesh
