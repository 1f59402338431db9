// Attention to other keys than all before a query, as rows beside decode, prefill and step.
#pragma once

#include <span>
#include <vector>

#include "kvmesh/external_pool.hpp"
#include "launch/bench/exactness.hpp"

namespace kvmesh::bench {

/// Returns the name in a row: "tables", "nhd", "sinks", "list", "tree", "mod", "fixed" or "limits";
/// empty for the plain manner.
std::string_view name(Manner manner);
/// Whether an operation has rows of a manner beside the plain ones.
bool has_manner(Op op, Manner manner);
/// Whether the rows are by Tables.
bool is_by_tables(Manner manner);

/// The options that the plans of all rows share.
PlanOptions plan_options(const Options& options);
/// The options of the plans of a row whose sequences each have `queries` newest queries.
PlanOptions plan_options(const Workload& workload, const Options& options, std::int64_t queries);

/// Seen::sees of a row. Valid while the workload lives.
decltype(Seen::sees) seen_by(const Workload& workload, const Options& options,
                             std::int64_t queries);

/// Seen::score of a row.
decltype(Seen::score) score_of(const Options& options);

/// Returns the parents of a tree of `tokens` tokens in which each has `children`, level after
/// level. The token before the tree, parent -1, has as many.
std::vector<std::int32_t> tree_parents(std::int64_t tokens, int children);

/// Returns token lists [queries, count] of the newest `queries` of each sequence: a position from
/// each of `count` equal parts of those that the query sees, drawn in the same way on every rank.
/// If it sees fewer, the list has all of them, and -1.
std::vector<std::int32_t> draw_lists(std::span<const std::int64_t> lengths, std::int64_t queries,
                                     std::int64_t count);

/// Returns a layer's pages as a row reads them. For kNhd it is the same memory, in which a page
/// then has its heads within its tokens.
KvPool pool_of(KvCache& cache, int layer, Manner manner);

/// The workload's pages as an engine has them: a pool, and a plan over the page tables of a batch,
/// with token lists if the options have them. Collective to make.
class Tables {
 public:
  Tables(Workload& workload, const Options& options, std::int64_t queries);

  void run(int layer, const ConstTensorView& q, const CombineOutput& output, Stream stream) {
    plan_.run(pool_of(cache_, layer, manner_), {.q = q}, output, stream);
  }
  void attend_partial(int layer, const ConstTensorView& q, const Partial& out, Stream stream) {
    plan_.attend_partial(pool_of(cache_, layer, manner_), q, out, stream);
  }
  std::span<const std::int32_t> lists() const { return lists_; }

 private:
  KvCache& cache_;
  Manner manner_;
  std::vector<std::int32_t> lists_;
  ExternalPool pool_;
  ExternalPlan plan_;
};

}  // namespace kvmesh::bench
