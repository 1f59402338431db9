// One step of a batch over a KvCache: what is planned, and what a layer's run takes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/api.h"
#include "kvmesh/attention.hpp"
#include "kvmesh/combine.hpp"
#include "kvmesh/stream.hpp"

namespace KVMESH_API kvmesh {

class KvCache;

/// One sequence of a step: `append_tokens` new positions and, after them, the newest
/// `query_tokens` positions as queries.
struct BatchEntry {
  SequenceId sequence;
  std::int64_t append_tokens = 0;
  std::int64_t query_tokens = -1;  ///< -1: equal to append_tokens
};

/// The largest batch that a plan reserves room for, so that later batches can be planned in place.
struct StepLimits {
  std::int64_t sequences = 0;
  /// Query tokens per sequence; also the limit for appended tokens per sequence.
  std::int64_t query_tokens = 1;
  /// Pages that a step reads on a rank, over all its sequences. A step may read more (forks share
  /// pages), but then captured graphs become invalid. 0: pages_per_rank.
  std::int64_t pages = 0;
  /// On a GPU: steps may share prefixes (PlanOptions::shares_prefixes). Each step then has a launch
  /// for shared prefixes, even if it shares none, and memory for their partials.
  bool shares_prefixes = false;
};

/// Layers whose attention differs from that of the step's other layers.
struct LayerKind {
  std::vector<int> layers{};
  MaskMod mask = mods::causal();
  ScoreMod score{};
  std::optional<float> scale{};
};

struct PlanOptions {
  /// Default: causal, with the queries at the end of the sequence. `MaskMod{}`: every key is
  /// visible.
  MaskMod mask = mods::causal();
  ScoreMod score{};
  std::optional<float> scale{};
  Scatter scatter = Scatter::kAll;
  CombineStrategy strategy = CombineStrategy::kAuto;
  std::optional<WayKind> way{};        ///< see CombineOptions
  Dtype travels_as = Dtype::kFloat32;  ///< see CombineOptions
  /// Logical positions of all queries of the batch; empty: each sequence's newest positions.
  std::vector<std::int64_t> q_positions{};
  /// A block mask over the batch's query indices and all heads of the model. Its kv block is the
  /// page size.
  const BlockMask* block_mask = nullptr;
  /// Layers with another mask, score or scale than those of this plan. All are planned together,
  /// and share page lists, the append and the combine. REQUIRES: no layer in two kinds; no block
  /// mask.
  std::vector<LayerKind> kinds{};
  /// Sequences of few queries that begin with the same pages (forks, the prefix cache) read these
  /// once for all of them, where that pays and every query sees them whole. Rows are then summed in
  /// another order, so their last bits depend on which sequences are in the batch. Whatever is set,
  /// nothing is shared in reproducible caches and with block masks, nor on a GPU with score mods
  /// that read `b` or with limits that do not have StepLimits::shares_prefixes.
  bool shares_prefixes = true;
  /// A prefix is shared if that saves at least this many reads of tokens: n - 1 times its length,
  /// if n sequences begin with it. Unset: 128 on a CPU; on a GPU the tokens in 64 MiB of a layer's
  /// keys and values (latent pages: 1 GiB), plus 0.5 MiB for each sequence and KV head.
  std::optional<std::int64_t> least_saved_tokens{};
  /// Fixed-split mode (batch invariance): no bit of a sequence's rows depends on the other
  /// sequences of the batch. 0: off. Otherwise a GPU reads the keys that some queries of a sequence
  /// see on a rank in pieces of this many tokens, from the first on, whatever else there is to
  /// read, and prefixes are not shared. CPUs always cut at fixed places, so there the option only
  /// ends the sharing. A multiple of 128 and of the page size (with token lists of 1), at most
  /// 2^30; 1024 and 2048 are usual.
  ///
  /// A sequence's O and LSE then have the same bits in every batch, at every place in it, alone or
  /// not, if these are the same: its tokens, its number of queries, the ranks of its pages; these
  /// options, all of the limits among them; the dtypes, strides and alignment of the tensors; the
  /// kind of GPU or `cpu_instruction_set`, and the build. Another number of queries, as where a
  /// prompt is divided into other steps, may give other bits. Mods that read `b` see another
  /// number.
  ///
  /// With several kv ranks this holds for `attend_partial`. It holds for `run` where `strategy` is
  /// kAuto or kAllToAll and partials either travel as float32 or always go the same way: without
  /// NCCL, a batch with more rows than a window of the peer way has goes through the host. kAuto is
  /// then kAllToAll; the hierarchical way and those of measured times are taken only if requested.
  /// Reproducible caches need no such option.
  ///
  /// A GPU needs room for all pieces: 4 (v_dim + 1) bytes for each query, query head and piece of
  /// the sequences that are cut. A sequence of many queries (128 blocks of up to 128 rows of a kv
  /// head, or more) is not.
  std::int64_t fixed_split_tokens = 0;
  /// For decoding in a captured graph: see StepPlan. On a GPU, `query_tokens` times the number of
  /// query heads per kv head may be at most 64. More than 128 heads (64 if v_dim is over 128) are
  /// computed in equal blocks, of which one counts.
  std::optional<StepLimits> limits{};
};

/// One layer's tensors on this rank, in memory of the mesh's device. The last dimension is
/// contiguous. n is the number of query tokens and m the number of appended tokens of the batch;
/// heads are this rank's share along head_parallel. All ranks of a column of the mesh pass the same
/// values.
///
/// Any dtype, but k and v have the same. append converts k and v to the cache's dtype. A GPU may
/// round q to the dtype of 16-bit pages (values beyond float16's range become infinite), and over
/// float8 pages to float16, after each row is scaled into its range. On a GPU, tensors of the
/// cache's dtype at multiples of 16 bytes are fastest.
///
/// A step that appends nothing needs no k and v, unless it has limits: leave them empty.
struct LayerInput {
  ConstTensorView q;    ///< [n, q_heads, k_dim]
  ConstTensorView k{};  ///< [m, kv_heads, k_dim]
  ConstTensorView v{};  ///< [m, kv_heads, v_dim]; an empty view for latent pages
  /// [q_heads] float32, contiguous: the layer's attention sinks; an empty view: none. A sink is the
  /// score, in natural units and after the scale and the score mod, of one more key that every row
  /// of its head sees, whose value is 0. Each row's O and LSE include it once, whatever the ranks.
  /// A row without a visible key has O = 0 and LSE = sink; a sink of -inf is none.
  ConstTensorView sinks{};
};

/// One step of a batch, made by `KvCache::plan`. The plan is valid until one of its own sequences
/// is appended to, truncated or erased. After that `run` and its parts throw InvalidArgument, until
/// `KvCache::replan` plans another batch. Changes of other sequences do not matter, so several
/// plans can exist side by side: for layers with different masks, or for parts of a batch. If
/// several plans belong to one step, the first appends, and the plans made after it only attend. A
/// CUDA graph that is replayed makes none of these checks.
///
/// After its cache is destroyed a plan can only be destroyed; its other members throw
/// InvalidArgument.
///
/// With `PlanOptions::limits`, neither the arguments of `run` nor its launches depend on the batch:
/// a step of many layers, captured in one CUDA graph, computes the batch that was planned last.
/// Tensors then have sequences * query_tokens tokens. The batch's tokens come first, one sequence
/// after another; the other rows of the inputs are not read, and those of the output are
/// unspecified. REQUIRES: before a capture the plan has run each layer's operations once.
class StepPlan {
 public:
  /// No plan: its members throw InvalidArgument, as those of one that was moved from.
  StepPlan() noexcept;
  explicit operator bool() const { return state_ != nullptr; }
  ~StepPlan();
  StepPlan(StepPlan&&) noexcept;
  StepPlan& operator=(StepPlan&&) noexcept;

  /// The number of tokens of the tensors: the batch's number, or with limits the largest number.
  std::int64_t query_tokens() const;
  std::int64_t append_tokens() const;

  /// Runs append, attend_partial and combine for one layer. `output` has the rows that the plan's
  /// `scatter` gives this rank (see CombineOutput).
  ///
  /// On a GPU it runs on `stream`, after the work that is there, allocates nothing and does not
  /// block the host. There are two exceptions: a combine by way of the host (WayKind::kStaged),
  /// which ranks use that share a GPU or have neither NCCL nor windows, and reproducible caches
  /// without NCCL; and the first tensors of another dtype or alignment, and the first sinks, whose
  /// kernels are loaded from disk or compiled. Wait for the stream (Mesh::wait) before you read the
  /// output or change the input.
  ///
  /// @throws InvalidArgument, before anything is written, also if the plan is not valid any more,
  /// or if kernels would have to be loaded while the stream is captured. Where the combine goes
  /// through the host: Timeout, PeerLost; DigestMismatch if another rank planned another step. On a
  /// GPU: NcclError, Timeout, Error if the device failed. Mesh::wait throws the errors of work on
  /// the stream. Collective over the mesh's kv axis.
  void run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream = {});

  /// The three parts of `run`, for an engine with its own collective or kernel. They are as
  /// asynchronous as `run` and throw as it does, with two differences: append and attend_partial
  /// throw no errors of peers, and they throw InvalidArgument before they write anything.
  void append(int layer, const ConstTensorView& k, const ConstTensorView& v, Stream stream = {});
  /// `out` has all n tokens and this rank's heads, in float32. `sinks` as in LayerInput: the
  /// rank with the lowest page rank that has pages of a row's sequence counts its sink; if none has
  /// any, that with page rank 0.
  void attend_partial(int layer, const ConstTensorView& q, const Partial& out, Stream stream = {},
                      const ConstTensorView& sinks = {});
  /// `mine` has all n tokens and this rank's heads of `layer` or of another layer of its group.
  /// Collective over the kv axis.
  void combine(const Partial& mine, const CombineOutput& output, Stream stream = {}, int layer = 0);

  /// For engines whose kv ranks each compute the queries of a share of the heads: gives every rank
  /// of a column the queries of all heads, as a run of the layer takes them. `share` is [n, heads,
  /// k_dim] with the heads share_of(q_heads, kv rank, kv_parallel), which may be none; `q` is [n,
  /// q_heads, k_dim], of the same dtype. `share` may be its heads' place in `q`, and may not
  /// overlap `q` otherwise.
  ///
  /// With limits, rows of `q` past the batch's are unspecified. It is as asynchronous as `combine`.
  /// It goes the way that PlanOptions::way or KVMESH_COMBINE_WAY names, else the first of peer,
  /// NCCL, staged and host that the group has. @throws as `run`. Collective over the kv axis.
  void gather_queries(int layer, const ConstTensorView& share, const TensorView& q,
                      Stream stream = {});

  /// The part of [n, q_heads] that this rank's output of a layer has; with Scatter::kOwner it is
  /// all.
  IndexRange tokens_of_output() const;
  IndexRange heads_of_output(int layer = 0) const;
  /// Returns which kv ranks hold keys of which query token in a layer. For a sequence without keys
  /// it is the rank with page rank 0.
  /// @throws InvalidArgument if the first call comes after the plan has become invalid.
  const Participation& participation(int layer = 0) const;
  /// Returns the number of tiles that the plan visits on this rank, in one layer of each kind of
  /// each group. Blocks until the device has done all its work.
  TileCounts tiles() const;
  /// Memory of the mesh's device beside the pools: the plan's buffers and the cache's page lists.
  /// On the CPU it is all memory that the plan holds.
  std::int64_t workspace_bytes() const;
  /// Host memory that the plan holds: its batch, lists, and what its combine keeps there.
  std::int64_t host_bytes() const;
  /// A number that changes when graphs that captured this plan's runs become invalid, because a
  /// buffer had to grow.
  std::uint64_t generation() const;

 private:
  friend class KvCache;
  class State;
  explicit StepPlan(std::unique_ptr<State> state);
  State& state() const;
  std::unique_ptr<State> state_;
};

}  // namespace kvmesh
