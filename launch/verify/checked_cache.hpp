// Compares every output of a KvCache with float64, and with a cache on one rank.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "launch/verify/checked_external.hpp"
#include "launch/verify/checked_states.hpp"
#include "launch/verify/findings.hpp"
#include "launch/verify/host_tensor.hpp"
#include "launch/verify/random.hpp"
#include "launch/verify/reference.hpp"

namespace kvmesh::verify {

struct StepOptions {
  PlanOptions plan{};
  /// The effect of an explicit block mask, pair by pair. Unset: `plan.mask`.
  std::optional<MaskMod> visible{};
  std::optional<Dtype> input{};    ///< of the queries, keys and values given. Unset: the cache's
  Dtype output = Dtype::kFloat32;  ///< of the output asked for
  bool lse = true;                 ///< ask for the merged LSE
  bool sinks = false;              ///< each layer has random sinks, of which some are -inf
  /// append, attend_partial and combine one by one, instead of run; not if reproducible.
  bool in_parts = false;
  /// Each rank passes the queries of its share of the heads, and gathers the others'.
  bool gathers = false;
  /// Plan the batch in place of an empty one. Not with a block mask, which fits one batch.
  bool replanned = false;
  /// Each layer runs by an ExternalPlan over page tables of the cache's pages. Not if reproducible,
  /// nor with Scatter::kOwner.
  bool external = false;
  /// With `external`: the layer's pages are first copied to an engine's, in this form, if those can
  /// take the batch, and the plan is over them. The cache's own get the new tokens, too.
  std::optional<EngineForm> engine{};
  /// Queries see no other positions; with `external` alone, and no mod that reads the batch row.
  TokenLists lists{};
};

/// Drives three things alike: the cache under test, one that has all pages on one rank, and plain
/// arrays. The one rank is on the CPU; but that of a reproducible cache is on the same device, runs
/// each sequence alone, and must have equal bits. Free pages are kept full of NaN. All ranks make
/// the same calls and draw the same random keys, values, queries and states. Wrong numbers go to
/// `findings`, so that one on one rank does not leave the other ranks waiting.
///
/// A plan may have limits. Then the tensors have room for more tokens than the batch has, and the
/// unused rows are NaN.
class CheckedCache {
 public:
  CheckedCache(Mesh& mesh, const CacheOptions& options, std::uint64_t seed);
  CheckedCache(const CheckedCache&) = delete;
  CheckedCache& operator=(const CheckedCache&) = delete;

  SequenceId create();
  SequenceId fork(SequenceId sequence);
  bool try_reserve(SequenceId sequence, std::int64_t tokens);
  void truncate(SequenceId sequence, std::int64_t length);
  /// KvCache's, on the distributed cache alone.
  std::int64_t rebalance(std::int64_t limit = 1 << 20);
  /// While pages move, calls that find too few free ones complete the moves and try again, since
  /// places of pages that were freed or copied meanwhile are free only then.
  MoveProgress rebalance_now(const RebalanceOptions& options);
  std::int64_t resize(PageRank rank, std::int64_t pages);
  void compact(const std::vector<KeptTokens>& batch);
  /// False, with nothing changed, if the pools are too full for the copies that it makes.
  bool try_compact(const std::vector<KeptTokens>& batch);
  void erase(SequenceId sequence);

  /// Publishes the full pages of the sequence's first tokens, which have these names. REQUIRES: a
  /// name always stands for the same keys; a sequence with states has exactly these tokens.
  void publish(SequenceId sequence, const std::vector<std::int32_t>& names);
  /// Makes a sequence of the published run of these tokens: from then on it has their keys, and the
  /// state after the last of them. REQUIRES: the pools have room for all that was published, so
  /// that both caches have kept it.
  SequenceId create_with_prefix(const std::vector<std::int32_t>& names);

  /// Plans, runs every layer on random numbers and compares. False if the pools are too full.
  /// Collective.
  bool step(std::span<const BatchEntry> batch, const StepOptions& options);
  bool step(std::initializer_list<BatchEntry> batch, const StepOptions& options = {});

  /// Compares the allocators of all ranks, and checks this one's invariants. Collective.
  void check_replicas();

  KvCache& cache() { return cache_; }
  /// The source of keys, values and queries; all ranks must draw from it alike.
  Random& random() { return random_; }
  const PageAllocator& allocator() const { return cache_.allocator(); }
  const Findings& findings() const { return findings_; }

 private:
  using Layers = std::vector<DenseSequence>;
  /// The content of published tokens, under their names.
  struct Published {
    std::vector<std::int32_t> names;
    Layers content;
    CheckedStates::OfLayers states;
  };
  struct Step;
  struct Outputs;
  struct Inputs;
  struct LayerResult;
  struct Row;
  void add_twin(SequenceId sequence, SequenceId twin);
  void keep_content(const std::vector<KeptTokens>& batch);
  static void keep_first(Layers& layers, std::int64_t length);
  /// Returns the published content of the first `length` of these tokens; with states, of exactly
  /// these.
  const Published* find_published(const std::vector<std::int32_t>& names,
                                  std::int64_t length) const;
  /// Completes moves of rebalance_now. Returns whether some were under way.
  bool complete_moves();
  std::optional<StepPlan> try_plan(std::span<const BatchEntry> batch, const StepOptions& options);
  /// Lists the queries of the step's batch.
  void add_queries(Step& step) const;

  /// Returns a tensor with random numbers in the first `filled` rows, and NaN in the others.
  HostTensor random_tensor(Dtype dtype, std::int64_t rows, std::int64_t filled, std::int64_t heads,
                           std::int64_t dim);
  /// Returns sinks [1, 1, q_heads].
  HostTensor random_sinks(int q_heads);
  Inputs random_inputs(const Step& step, int layer);
  void run_layer(Step& step, int layer);
  /// Returns this rank's part of the output.
  Outputs run_here(Step& step, int layer, Inputs& inputs);
  /// The inputs as the single rank takes them.
  LayerInput inputs_alone(const Step& step, int layer, Inputs& inputs) const;
  /// `gathered`: where the queries of all heads are gathered first; empty: the input has them.
  void run_on_ranks(Step& step, int layer, const LayerInput& input, const TensorView& gathered,
                    const CombineOutput& output);
  /// False, with nothing done, if an engine's pages cannot take the step.
  bool try_on_engine(Step& step, int layer, const PlanOptions& of_layer, const LayerInput& given,
                     const TensorView& gathered, const CombineOutput& output);
  template <class Plan, class Layer>
  void run_plan(Plan& plan, const Layer& layer, bool in_parts, const LayerInput& input,
                const CombineOutput& output);
  template <class Plan, class Layer>
  LayerInput with_gathered(Plan& plan, const Layer& layer, const LayerInput& input,
                           const TensorView& gathered) const;
  void compare_gathered(const Step& step, HostTensor& gathered, const HostTensor& q,
                        IndexRange heads);
  Outputs outputs_of(const Step& step, int layer) const;
  Outputs attend_alone(Step& step, int layer, const ConstTensorView& q,
                       const ConstTensorView& sinks);
  Outputs run_alone(Step& step, int layer, const LayerInput& all);
  void remember(const Step& step, int layer, const HostTensor& k, const HostTensor& v);
  void check_layer(const Step& step, const LayerResult& result);
  std::string place_of(const Step& step, const LayerResult& result, const Row& row,
                       const std::string& what) const;
  template <class WantO>
  void compare_bits(const Step& step, const LayerResult& result, const Row& row,
                    const WantO& want_o, double want_lse);
  template <class WantO, class Spread>
  void compare_row(const Step& step, const LayerResult& result, const Row& row, const char* with,
                   const WantO& want_o, double want_lse, const Spread& spread);
  static auto spread_of_rounding(const LayerResult& result, const Row& row);
  void compare_with_reference(const Step& step, const LayerResult& result, const Row& row);
  ReferenceRow reference(const Step& step, const LayerResult& result, const HostTensor& queries,
                         const Row& place) const;
  IndexRange local(int heads) const;
  /// The options of the layer's group.
  const CacheOptions& of(int layer) const { return of_layers_[static_cast<std::size_t>(layer)]; }
  bool is_latent(int layer) const { return of(layer).page_kind == PageKind::kLatent; }
  void expect(bool ok, const char* message);

  Mesh* mesh_;
  Mesh single_mesh_;
  KvCache cache_;
  KvCache single_;
  std::vector<CacheOptions> of_layers_;
  Random random_;
  std::map<SequenceId, Layers> content_;
  std::map<SequenceId, SequenceId> twins_;  // in single_: no cache takes another's ids
  std::vector<Published> published_;
  bool is_moving_ = false;  // pages, beside other calls
  Findings findings_;
  CheckedStates states_{cache_, findings_};
  CheckedExternal external_{cache_};
  CheckedExternal single_external_{single_};
};

}  // namespace kvmesh::verify
