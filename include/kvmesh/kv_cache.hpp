// The distributed KV cache: what an engine links kvmesh for.
//
//   batch -> plan -> append -> attend -> combine -> output
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/attention.hpp"
#include "kvmesh/combine.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// The model's sizes are those of the whole model; head_parallel divides the heads. How much memory
/// a rank's pools take is said in one of three ways, the same on every rank (0: not this one).
/// Ranks may come to different numbers of pages; then all take the smallest.
struct CacheOptions {
  int layers = 1;
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;  ///< 0: as k_dim
  int page_size = 16;
  std::int64_t pages_per_rank = 0;
  std::int64_t bytes = 0;  ///< of this rank's pools, all layers
  /// Of the memory that this rank's device has free, in (0, 1]; ranks that share a device share it.
  double memory_fraction = 0;
  Dtype dtype = Dtype::kBFloat16;
  Placement placement = Placement::kBalanced;
  std::int64_t home_threshold_tokens = 2048;
};

/// One sequence of a step: `append_tokens` new positions and, after them, the newest
/// `query_tokens` positions as queries.
struct BatchEntry {
  SequenceId sequence;
  std::int64_t append_tokens = 0;
  std::int64_t query_tokens = -1;  ///< -1: as many as are appended
};

/// Room that a plan keeps, so that later batches can be planned in place.
struct StepLimits {
  std::int64_t sequences = 0;
  /// Of one sequence, as queries and as new tokens.
  std::int64_t query_tokens = 1;
  /// Pages on a rank that a step reads, of all its sequences together. A step may read more (forks
  /// share pages), but then captured graphs become invalid; 0: pages_per_rank.
  std::int64_t pages = 0;
};

struct PlanOptions {
  /// Default: causal, queries aligned to the end. `MaskMod{}`: every key is visible.
  MaskMod mask = mods::causal();
  ScoreMod score{};
  std::optional<float> scale{};
  Scatter scatter = Scatter::kAll;
  CombineStrategy strategy = CombineStrategy::kAuto;
  /// Logical positions of all queries of the batch; empty: the newest of each sequence.
  std::vector<std::int64_t> q_positions{};
  /// Over the batch's query indices and all the model's heads. Its kv block is the page size.
  const BlockMask* block_mask = nullptr;
  /// For decoding in a captured graph: see StepPlan. On a GPU, query_tokens times the query heads
  /// of a kv head may be 64 at most.
  std::optional<StepLimits> limits{};
};

/// One layer's tensors on this rank, in memory of the mesh's device. n: query tokens, m: appended
/// tokens of the batch, heads: this rank's share along head_parallel. Every rank of a column passes
/// the same values. Each of any dtype, k and v of the same one: append converts them to the
/// cache's, and a GPU may convert q to that of 16-bit pages (what is past float16's range becomes
/// infinite). The last dimension is contiguous. On a GPU tensors of the cache's dtype, at multiples
/// of 16 bytes, are the fast ones.
struct LayerInput {
  ConstTensorView q;  ///< [n, q_heads, k_dim]
  ConstTensorView k;  ///< [m, kv_heads, k_dim]
  ConstTensorView v;  ///< [m, kv_heads, v_dim]
};

class KvCache;

/// One step of a batch, made by `KvCache::plan`. It is good until one of its own sequences changes:
/// is appended to, truncated or erased. From then on `run` and its parts refuse; `KvCache::replan`
/// makes it good for another batch. What happens to other sequences does not matter, so several
/// plans live side by side: for layers with other masks, or for parts of a batch. Of several plans
/// of one step the first appends, and the others, made after it, only attend. A CUDA graph that is
/// replayed makes none of these checks.
///
/// A plan that outlives its cache refuses everything but to be destroyed.
///
/// With `PlanOptions::limits` nothing that `run` is given or launches depends on the batch: a step
/// of many layers, captured in one CUDA graph, computes whatever was planned last. Tensors then
/// have sequences * query_tokens tokens, of which the batch's come first, one sequence after
/// another; the rest is not read, and what is left there is unspecified. A plan that is captured
/// has run each layer's operations once before.
class StepPlan {
 public:
  ~StepPlan();
  StepPlan(StepPlan&&) noexcept;
  StepPlan& operator=(StepPlan&&) noexcept;

  /// Of the tensors: the batch's, or what the limits have room for.
  std::int64_t query_tokens() const;
  std::int64_t append_tokens() const;

  /// append, attend_partial, combine. Collective over the mesh's kv axis.
  /// `output` has the rows that the plan's `scatter` gives this rank (see CombineOutput).
  ///
  /// On a GPU it starts after what is on `stream`, allocates nothing and does not wait for the
  /// host. Two exceptions: where ranks share a GPU, or without NCCL, the combine goes by way of the
  /// host, and the first tensors of another dtype or alignment have their kernels compiled, or read
  /// from disk. Wait for the stream (Mesh::wait) before reading the output, or changing the input.
  ///
  /// @throws InvalidArgument, before anything is written, also if the plan is not good any more. On
  /// the CPU, and where ranks share a GPU: Timeout, PeerLost. On a GPU: NcclError, Timeout, Error
  /// if the device failed; what fails on the stream itself comes out of Mesh::wait.
  void run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream = {});

  /// The three parts on their own, for an engine with its own collective or kernel. They are as
  /// asynchronous as `run`, and throw as it does; the first two throw nothing of peers, and
  /// InvalidArgument before anything is written.
  void append(int layer, const ConstTensorView& k, const ConstTensorView& v, Stream stream = {});
  /// `out` covers all n tokens and this rank's heads; float32.
  void attend_partial(int layer, const ConstTensorView& q, const Partial& out, Stream stream = {});
  /// `mine` covers all n tokens and this rank's heads. Collective over the kv axis.
  void combine(const Partial& mine, const CombineOutput& output, Stream stream = {});

  /// What of [n, q_heads] this rank's output holds.
  Share tokens_of_output() const;
  Share heads_of_output() const;
  /// Which kv ranks hold keys of which query token. @throws InvalidArgument if it is asked for the
  /// first time when the plan is not good any more.
  const Participation& participation() const;
  /// Waits for the device.
  TileCounts tiles() const;
  /// Device memory that the plan holds beside the pools, the cache's lists of pages included.
  std::int64_t workspace_bytes() const;
  /// Changes when graphs that captured this plan's runs have become invalid: something had to grow.
  std::uint64_t generation() const;

 private:
  friend class KvCache;
  class State;
  explicit StepPlan(std::unique_ptr<State> state);
  State& state() const;
  std::unique_ptr<State> state_;
};

/// This rank's part of the cache: its pools, and a copy of the allocator that all ranks drive
/// alike. Every rank calls the same operations in the same order; those that talk to others say
/// "collective". Strong guarantee, as in PageAllocator. One thread a rank.
class KvCache {
 public:
  /// Collective: the ranks agree on the size, and those of one machine map one another's pools.
  /// @throws InvalidArgument if the heads do not divide over head_parallel or a size is wrong;
  /// OutOfMemory, on every rank, if the device of one has no room.
  KvCache(Mesh& mesh, const CacheOptions& options);
  ~KvCache();
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;

  /// As given, but that v_dim is never 0, and pages_per_rank is what the memory came to, and alone
  /// says it.
  const CacheOptions& options() const;
  Mesh& mesh();
  /// Lengths, page tables, free pages, digest.
  const PageAllocator& allocator() const;

  /// As PageAllocator's, with their errors; ids of another cache are an UnknownSequence. They
  /// change metadata only: on a GPU nothing waits.
  SequenceId create();
  void reserve(SequenceId sequence, std::int64_t tokens);
  [[nodiscard]] bool try_reserve(SequenceId sequence, std::int64_t tokens);
  SequenceId fork(SequenceId sequence);
  void truncate(SequenceId sequence, std::int64_t length);
  void erase(SequenceId sequence);

  /// BlockMask::create, made by the mesh's device.
  BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape);

  /// Lengthens the batch's sequences and works out the step; does the copies that copy on write
  /// asks for (collective only where a page moves to another rank). A sequence may appear once.
  /// Waits until the plan is on the device and, with other ranks, first for all it was given.
  /// @throws OutOfPages, UnknownSequence, InvalidArgument; then nothing has changed.
  ///
  /// @throws Timeout, PeerLost (a copy to or from another rank), NcclError, Error (the device
  /// failed, or has no memory left for the plan), DigestMismatch (debug builds). Then the sequences
  /// have their new lengths, on every rank alike, also where the call succeeded. To go back,
  /// truncate them to their old lengths on every rank; but one of which a fork shared the last
  /// page, not full, may lack that page's copy: truncate it to whole pages, or erase it. It is
  /// worth it only while the communicators are whole.
  ///
  /// A Timeout or NcclError of that first wait, and an Error while kernels and the limits' memory
  /// are made, have changed nothing on this rank. If other ranks had none, they have appended and
  /// the allocators differ: the cache is not to be used any more.
  StepPlan plan(std::span<const BatchEntry> batch, const PlanOptions& options = {});
  StepPlan plan(std::initializer_list<BatchEntry> batch, const PlanOptions& options = {}) {
    return plan(std::span(batch.begin(), batch.size()), options);
  }
  /// Empty if the pools are too full for the batch.
  [[nodiscard]] std::optional<StepPlan> try_plan(std::span<const BatchEntry> batch,
                                                 const PlanOptions& options = {});

  /// The same for another batch, in place: with `step`'s options, in its memory. On a GPU the work
  /// is done on `stream`, after what is there, and nothing waits for it, but for the copies of copy
  /// on write, for kernels that are needed for the first time, and for a replan before that the
  /// device has not taken yet. `q_positions` as in PlanOptions. What does not fit the step's limits
  /// is an InvalidArgument, as is another cache's step. Throws as `plan` does; after an error that
  /// has changed something `step` is to be planned again before it is run, and refuses until then.
  void replan(StepPlan& step, std::span<const BatchEntry> batch, Stream stream = {},
              std::span<const std::int64_t> q_positions = {});
  [[nodiscard]] bool try_replan(StepPlan& step, std::span<const BatchEntry> batch,
                                Stream stream = {}, std::span<const std::int64_t> q_positions = {});

  /// Collective: throws DigestMismatch, naming the first operation in which the ranks' allocators
  /// parted, if they are not equal. Debug builds call it in every plan.
  void check_replicas();

  /// What this rank's pools take of its device.
  std::int64_t pool_bytes() const;
  /// This rank's pages of one layer, for kernels of the engine's own.
  /// @throws InvalidArgument if there is no such layer.
  KvPool pool(int layer);
  /// Another kv rank's pages of one layer, for kernels of this rank's device to read (or this
  /// rank's own). Empty where they cannot be mapped: on another machine, or on a GPU without access
  /// to this one's. Its owner writes to it: make sure, by a message or a collective, that it is
  /// done with the pages that are read. If its process dies the pages stay. Only an owner that
  /// frees its cache (destroys or moves into it) takes them away: no peer may be reading then.
  /// @throws InvalidArgument if there is no such rank or layer.
  std::optional<ConstKvPool> peer_pool(Rank kv_rank, int layer) const;

 private:
  friend class StepPlan;
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace kvmesh
