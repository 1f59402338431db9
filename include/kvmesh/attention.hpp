// The CPU's kernels: append, attend_partial, copy_pages over one layer's pool of pages.
//
// `KvCache` calls them for an engine that keeps its cache in kvmesh. An engine with its own
// allocator calls them directly, on any pool in host memory that a strided view can describe. On a
// GPU, StepPlan has the same operations.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/block_mask.hpp"
#include "kvmesh/mods.hpp"
#include "kvmesh/page.hpp"
#include "kvmesh/page_format.hpp"
#include "kvmesh/partial.hpp"
#include "kvmesh/tensor.hpp"
#include "kvmesh/thread_pool.hpp"

namespace KVMESH_API kvmesh {

/// Writes `k` [tokens, kv_heads, k_dim] and `v` [tokens, kv_heads, v_dim] to `slots` [tokens],
/// converting them to the pool's dtype. For a latent pool `v` is an empty view.
/// REQUIRES: k and v have the same dtype.
/// @throws InvalidArgument before anything is written.
void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
            std::span<const TokenSlot> slots, ThreadPool& threads);

/// Copies pages within a layer, in all of its planes.
/// @throws InvalidArgument before anything is copied.
void copy_pages(const PagePlanes& planes, std::span<const LocalPageCopy> copies);

/// A ragged batch. Sequence s has the queries [q_indptr[s], q_indptr[s + 1]). Its pages on this
/// rank are [page_indptr[s], page_indptr[s + 1]) in ascending logical order; there may be none.
struct AttentionBatch {
  std::vector<std::int64_t> q_indptr;     ///< [batch + 1], first 0
  std::vector<std::int64_t> kv_lens;      ///< [batch], over all ranks; later slots are not read
  std::vector<std::int64_t> q_positions;  ///< [tokens]; empty: kv_len - q_len + i, the newest
  std::vector<std::int64_t> page_indptr;  ///< [batch + 1], first 0
  std::vector<LocalPage> pages;
  /// [batch]; whether this rank counts the sinks of the sequence's rows. Exactly one rank must.
  /// Empty: it counts those of all sequences.
  std::vector<bool> counts_sinks{};
};

struct AttentionOptions {
  /// Applied to q.k before the score mod; finite. Unset: 1 / sqrt(k_dim).
  std::optional<float> scale{};
  MaskMod mask{};
  ScoreMod score{};
  /// Which pages to visit and which of them to mask, per batch row, head and q block (in query
  /// indices). Null: computed from `mask`. Copied. REQUIRES: its pages are pages of the batch.
  const LocalBlockMask* block_mask = nullptr;
  /// Pages that several sequences begin with are read once for all of them, where that pays: see
  /// PlanOptions::shares_prefixes.
  bool shares_prefixes = true;
  /// The model's number of this rank's first query head: mods get head numbers of the whole model.
  int first_head = 0;
};

/// The number of tiles that a plan visits, summed over kv heads and q blocks.
struct TileCounts {
  std::int64_t visited = 0;  ///< tiles (one page, one block of query rows) that are read
  std::int64_t masked = 0;   ///< visited tiles for which the mask is evaluated

  TileCounts& operator+=(const TileCounts& other) {
    visited += other.visited;
    masked += other.masked;
    return *this;
  }
};

/// The attention of one step: constructed once per step, from the batch, and run once per layer.
class AttentionPlan {
 public:
  /// @throws InvalidArgument if the batch, the shape and the options do not fit together.
  AttentionPlan(const AttentionShape& shape, const AttentionBatch& batch,
                const AttentionOptions& options);
  ~AttentionPlan();
  AttentionPlan(AttentionPlan&&) noexcept;
  AttentionPlan& operator=(AttentionPlan&&) noexcept;

  /// Computes attention of `q` [tokens, q_heads, k_dim] over this rank's pages into `out`. Rows
  /// without a visible key on this rank get O = 0, LSE = -inf. The work is divided over the threads
  /// by (sequence, head, split). The division, and so every bit of the result, depends on the batch
  /// alone, not on the number of threads. With `sinks` [q_heads] (see LayerInput) O and LSE include
  /// them in the rows of the sequences whose sinks this rank counts.
  /// @throws InvalidArgument before anything is written.
  /// Source: online softmax (Milakov and Gimelshein, 2018), split-KV and its merge (Flash-Decoding,
  /// Dao et al., 2023).
  void attend_partial(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
                      ThreadPool& threads, const ConstTensorView& sinks = {});

  std::int64_t tokens() const;
  TileCounts tiles() const;
  /// Memory that the plan holds: lists, partials of splits, and what threads use.
  std::int64_t workspace_bytes() const;

 private:
  class State;
  State& state() const;
  std::unique_ptr<State> state_;
};

/// The instruction set that the CPU kernels use on this machine: "AVX3" (AVX-512), "AVX2", ...
std::string_view cpu_instruction_set();

}  // namespace kvmesh
