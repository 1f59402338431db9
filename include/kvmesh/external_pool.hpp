// Attention over pages that the engine owns: its memory, its page tables.
//
//   ExternalPool pool(mesh, layer_0, {.q_heads = 32});
//   const PageTables tables{.q_indptr = ..., .kv_lens = ..., .indptr = ..., .indices = ...};
//   ExternalPlan plan = pool.plan(tables);
//   for each layer:
//     plan.run(layer_i, {.q = q, .k = k, .v = v}, {.o = o, .lse = lse}, stream);
//
// With several ranks, each rank has its own pages of every sequence, and the ranks combine their
// partials as those of a KvCache do.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/kv_cache.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/page_format.hpp"

namespace KVMESH_API kvmesh {

/// Pools over tensors as engines have them. `k` and `v` are [pages, page_size, kv_heads, dim]
/// (NHD); any strides with a contiguous last dimension, so they may be halves of one tensor.
KvPool nhd_pool(const TensorView& k, const TensorView& v);
/// `rows` [pages, kv_heads, page_size, k_dim + v_dim] has the key and the value of a token and head
/// side by side.
/// @throws InvalidArgument unless 0 < k_dim < rows.size(3).
KvPool side_by_side_pool(const TensorView& rows, int k_dim);

struct ExternalPoolOptions {
  /// Query heads of this rank. REQUIRES: a multiple of the pool's kv heads.
  int q_heads = 0;
  /// The page rank that holds a token, in page tables without `logical`: position p is on page
  /// rank (p / interleave) % kv_parallel, and a rank's tokens fill its pages in order. That is the
  /// ownership of vLLM's decode context parallelism, where a page of the table spans page_size *
  /// kv_parallel positions. 0: the page size. REQUIRES: it divides the page size or is a multiple
  /// of it.
  ///
  /// If it is below the page size and there are several ranks, kernels see pages of `interleave`
  /// tokens, as block masks do; a page table has `indices` of whole pages nonetheless. REQUIRES:
  /// the pages of keys, of values and of scales lie equally many rows of a token apart. They do in
  /// separate tensors of one order, side by side, and in pairs if k_dim == v_dim. Token lists need
  /// that, too.
  std::int64_t interleave = 0;
};

/// The page tables of a batch on this rank, in the engine's memory; a plan copies what it needs.
/// `q_indptr`, `kv_lens` and `appended` are equal on all ranks.
///
/// Pages past a sequence's length are ignored. A position that no rank has a page for is a key that
/// no query sees.
struct PageTables {
  /// [batch + 1], first 0: sequence b has the queries [q_indptr[b], q_indptr[b + 1]).
  std::span<const std::int32_t> q_indptr{};
  /// [batch] tokens of each sequence over all ranks, those that the step appends included.
  std::span<const std::int32_t> kv_lens{};
  /// [batch + 1]: sequence b has the entries [indptr[b], indptr[b + 1]) of `indices`.
  std::span<const std::int32_t> indptr{};
  /// Pages of this rank's pool, of each sequence in ascending logical order.
  std::span<const std::int32_t> indices{};
  /// Instead of `indptr`: entries of a row of a block table [batch, row_length]. 0: `indptr`
  /// counts.
  std::int64_t row_length = 0;
  /// [indices] the logical pages that the entries are: entry i has the positions [logical[i] *
  /// page_size, (logical[i] + 1) * page_size). Ascending within a sequence. Unset: as
  /// ExternalPoolOptions::interleave says, which on one rank is entry after entry. REQUIRES: no
  /// logical page is on two ranks.
  std::optional<std::span<const std::int32_t>> logical{};
  /// [batch] the newest tokens of each sequence that `run` writes, if it is given keys. Empty:
  /// none.
  std::span<const std::int32_t> appended{};
  /// [queries, list_length] the positions that each query sees, in any order; -1: none. A position
  /// that the mask hides stays hidden. Equal on all ranks. Such a plan takes no block mask, no mod
  /// that reads the batch row, and no `appended`: another plan of the step appends. Replans of it
  /// have lists, too, of any length.
  std::span<const std::int32_t> token_lists{};
  std::int64_t list_length = 0;  ///< 0: no lists, each query sees what the mask lets it see
  /// The device of the arrays. The mesh's GPU: each is in that GPU's memory or in the host's.
  /// `plan` and `replan` copy those of the GPU to the host after the work that is on their stream,
  /// and wait for that work; so the stream must not be captured.
  Device device{};
};

/// The page tables of sequences of a KvCache in one layer group, to attend to them as to an
/// engine's: with token lists over `KvCache::pool`, in an ExternalPool without an `interleave`.
class CacheTables {
 public:
  /// The pages of one page rank (Mesh::page_rank) for a batch whose tokens are appended already: of
  /// each entry, the sequence and `query_tokens`.
  /// @throws UnknownSequence; InvalidArgument for an entry that would append, or has no number of
  /// query tokens, and for a group that does not exist.
  CacheTables(const KvCache& cache, PageRank pool, std::span<const BatchEntry> batch,
              int group = 0);
  /// Valid while this object lives and its sequences do not change.
  PageTables view() const;

 private:
  std::vector<std::int32_t> q_indptr_, kv_lens_, indptr_, indices_, logical_;
};

/// One step over an engine's pages, as StepPlan is over a cache's: the same parts, limits and
/// errors. A plan keeps its pool's kernels alive, also when the ExternalPool is gone. It does not
/// know when the engine changes its tables: plan again before a step with others.
///
/// `pool` is one layer's: of the shape, dtypes and kind of scales that the ExternalPool was made
/// with. Only `append`, and `run` with keys, write to it. On a GPU `run` and `attend_partial`
/// refuse strides of pages, and of tokens times the page size, of 4 GiB and more (InvalidArgument).
class ExternalPlan {
 public:
  /// No plan: its members throw InvalidArgument, as those of one that was moved from.
  ExternalPlan() noexcept;
  explicit operator bool() const { return state_ != nullptr; }
  ~ExternalPlan();
  ExternalPlan(ExternalPlan&&) noexcept;
  ExternalPlan& operator=(ExternalPlan&&) noexcept;

  std::int64_t query_tokens() const;
  std::int64_t append_tokens() const;

  /// As StepPlan::run, over `pool`. Without keys and values nothing is appended, whatever
  /// PageTables::appended says: the engine has written them itself.
  void run(const KvPool& pool, const LayerInput& input, const CombineOutput& output,
           Stream stream = {});

  /// The three parts of `run`: see StepPlan.
  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream stream = {});
  void attend_partial(const KvPool& pool, const ConstTensorView& q, const Partial& out,
                      Stream stream = {}, const ConstTensorView& sinks = {});
  void combine(const Partial& mine, const CombineOutput& output, Stream stream = {});

  /// As StepPlan::gather_queries.
  void gather_queries(const ConstTensorView& share, const TensorView& q, Stream stream = {});

  IndexRange tokens_of_output() const;
  IndexRange heads_of_output() const;
  /// Returns which kv ranks hold keys of which query token. With PageTables::logical every rank
  /// counts as one that does.
  const Participation& participation() const;
  TileCounts tiles() const;
  std::int64_t workspace_bytes() const;
  std::int64_t host_bytes() const;
  std::uint64_t generation() const;

 private:
  friend class ExternalPool;
  class State;
  explicit ExternalPlan(std::unique_ptr<State> state);
  State& state() const;
  std::unique_ptr<State> state_;
};

/// The kernels over an engine's pools, all of one form. Holds no pages. One thread per rank; all
/// ranks make the same plans in the same order.
class ExternalPool {
 public:
  /// For layers like `layer`, of which only the form counts (shape, strides, dtypes, kind of
  /// scales), on the mesh's device.
  /// @throws InvalidArgument. Sends nothing.
  ExternalPool(Mesh& mesh, const ConstKvPool& layer, const ExternalPoolOptions& options);
  ~ExternalPool();
  ExternalPool(ExternalPool&&) noexcept;
  ExternalPool& operator=(ExternalPool&&) noexcept;

  /// Plans one step for layers of one kind: PlanOptions::kinds is refused, as an engine's layers
  /// have no numbers here; make a plan for each kind. REQUIRES: a block mask has kv blocks of the
  /// page size (or of `interleave`, if that is smaller and there are several ranks).
  /// StepLimits::pages counts entries of page tables, 0 those of the whole pool; with token lists
  /// positions of lists, 0 as many as all queries have with lists of this length. `stream` is only
  /// for tables on a GPU (PageTables::device). Blocks until the plan is on the device; with several
  /// kv ranks it first waits for all earlier work on the device.
  /// @throws InvalidArgument, on tables that do not fit one another, the lengths or the pool, that
  /// are on another device than the mesh's, or on a GPU with a stream that is captured, with
  /// nothing changed; DigestMismatch if the ranks have not planned the same steps (compared at
  /// every 64th plan, in debug builds at every plan, and where the combine goes through the host);
  /// Timeout, PeerLost, NcclError, Error.
  /// Collective at every 64th plan, in debug builds at every plan.
  ExternalPlan plan(const PageTables& tables, const PlanOptions& options = {}, Stream stream = {});

  /// Plans another batch in place, with `step`'s options and in its memory: on a GPU on `stream`,
  /// after the work that is there, for replays of captured graphs that follow. It waits for that
  /// work only if tables are on the GPU. `q_positions` as in PlanOptions.
  /// @throws as `plan`; InvalidArgument also if the batch exceeds the step's limits or `step` is
  /// another pool's. After any other error `step` throws InvalidArgument until it is planned again.
  void replan(ExternalPlan& step, const PageTables& tables, Stream stream = {},
              std::span<const std::int64_t> q_positions = {});

 private:
  friend class ExternalPlan;
  class State;
  State& state() const;
  std::shared_ptr<State> state_;  // shared with the plans
};

}  // namespace kvmesh
