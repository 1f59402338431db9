// plan: once per step, from an engine's page tables. run: once per layer.
#include <algorithm>
#include <utility>

#include "core/check.hpp"
#include "kernels/mods/graph.hpp"
#include "runtime/external/external_state.hpp"
#include "runtime/step/step_run.hpp"

namespace kvmesh {
namespace {

bool reads_batch(const PlanOptions& options) {
  return options.mask.graph().depends_on(kDependsBatch) ||
         options.score.graph().depends_on(kDependsBatch);
}

}  // namespace

class ExternalPlan::State {
 public:
  /// Makes the kernels for batches like `first`. Plans nothing.
  State(std::shared_ptr<ExternalPool::State> owner, const TableRules& rules,
        const PageTables& first, const PlanOptions& options)
      : owner_(std::move(owner)),
        rules_(rules),
        limits_(options.limits),
        hashes_(hashes_of(options)) {
    if (options.block_mask) block_mask_ = *options.block_mask;
    run_.emplace(owner_->mesh, owner_->backend_for(first),
                 step_options(options, limits_of_step(first.list_length)),
                 TableBatch::entries(first));
  }
  ~State() { owner_->let_go(); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  bool is_of(const ExternalPool::State& pool) const { return owner_.get() == &pool; }
  const TableRules& rules() const { return rules_; }
  StepRules step_rules(std::span<const std::int64_t> q_positions) const {
    return {q_positions, block_mask_ ? &*block_mask_ : nullptr, limits_};
  }

  /// REQUIRES: checked tables, of the sizes `sizes`.
  /// @throws InvalidArgument with the last plan as it was.
  void plan(const PageTables& tables, std::span<const SequenceSize> sizes,
            std::span<const std::int64_t> q_positions, Stream stream) {
    run_->check(sizes);
    const PlanHashes hashes = hashes_for(tables, q_positions);
    owner_->history.compare(owner_->mesh.world(), hashes, [] {});
    owner_->history.add(hashes);
    is_planned_ = false;
    batch_.set(rules_, tables, q_positions);
    batch_.step().set_digest(owner_->history.digest());
    run_->plan(batch_.step(), stream);
    is_planned_ = true;
  }

  StepRun& current() {
    require(is_planned_, "plan: its last replan failed half way: plan it again first");
    return *run_;
  }
  const StepRun& made() const { return *run_; }
  KvPool pool(const KvPool& given) const {
    owner_->check_form(given);
    return in_units(given, rules_.units);
  }
  const Participation& participation() {
    static_cast<void>(current());
    return batch_.step().participation();
  }
  TileCounts tiles() {
    owner_->backend->wait_idle();
    return current().tiles();
  }

 private:
  /// With token lists a query is a sequence of the step, and its positions are the sequence's
  /// pages.
  std::optional<StepLimits> limits_of_step(std::int64_t list_length) const {
    if (!limits_) return std::nullopt;
    StepLimits limits = *limits_;
    if (list_length == 0) {
      limits.pages = (limits.pages == 0 ? rules_.pages : limits.pages) * rules_.units.per_page;
      return limits;
    }
    limits.sequences = limits_->sequences * limits_->query_tokens;
    limits.query_tokens = 1;
    if (limits.pages == 0) {
      limits.pages = std::min(kMaxLength / list_length, limits.sequences) * list_length;
    }
    return limits;
  }

  StepOptions step_options(const PlanOptions& options,
                           const std::optional<StepLimits>& limits) const {
    AttentionShape shape = owner_->shape;
    shape.page_size = rules_.units.tokens;
    return {.shape = shape,
            .format = owner_->format,
            // Partial blocks are masked with the mod that the block mask was made from.
            .kinds = {{.scale = options.scale,
                       .mask = options.block_mask ? options.block_mask->mask_mod() : options.mask,
                       .score = options.score,
                       .first_head = owner_->mesh.head_rank() * shape.q_heads}},
            .block_mask = block_mask_ ? &*block_mask_ : nullptr,
            .combine = combine_options(options),
            .limits = limits,
            .shares_prefixes = options.shares_prefixes,
            .least_saved_tokens = options.least_saved_tokens,
            .fixed_split_tokens = options.fixed_split_tokens};
  }

  /// Hashes everything that must be equal on all ranks.
  PlanHashes hashes_for(const PageTables& tables, std::span<const std::int64_t> q_positions) const {
    std::vector<std::int64_t> numbers(q_positions.begin(), q_positions.end());
    numbers.insert(numbers.end(), tables.kv_lens.begin(), tables.kv_lens.end());
    numbers.insert(numbers.end(), tables.token_lists.begin(), tables.token_lists.end());
    return with_batch(hashes_, TableBatch::entries(tables), numbers, 0);
  }

  std::shared_ptr<ExternalPool::State> owner_;
  TableRules rules_;
  std::optional<StepLimits> limits_;  // as given
  PlanHashes hashes_;                 // of the options
  std::optional<BlockMask> block_mask_;
  TableBatch batch_;
  std::optional<StepRun> run_;
  bool is_planned_ = false;
};

ExternalPlan::ExternalPlan() noexcept = default;
ExternalPlan::ExternalPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
ExternalPlan::~ExternalPlan() = default;
ExternalPlan::ExternalPlan(ExternalPlan&&) noexcept = default;
ExternalPlan& ExternalPlan::operator=(ExternalPlan&&) noexcept = default;

ExternalPlan::State& ExternalPlan::state() const {
  require(state_ != nullptr, "plan: the plan has been moved from");
  return *state_;
}

std::int64_t ExternalPlan::query_tokens() const { return state().made().query_tokens(); }
std::int64_t ExternalPlan::append_tokens() const { return state().made().append_tokens(); }
void ExternalPlan::run(const KvPool& pool, const LayerInput& input, const CombineOutput& output,
                       Stream stream) {
  const bool appends = !input.k.empty() || !input.v.empty();
  StepRun& run = state().current();
  run.run(state().pool(pool), input, output, stream, 0, appends);
}
void ExternalPlan::append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                          Stream stream) {
  StepRun& run = state().current();
  run.append(state().pool(pool), k, v, stream);
}
void ExternalPlan::attend_partial(const KvPool& pool, const ConstTensorView& q, const Partial& out,
                                  Stream stream, const ConstTensorView& sinks) {
  StepRun& run = state().current();
  run.attend_partial(state().pool(pool), {q, sinks}, out, stream);
}
void ExternalPlan::combine(const Partial& mine, const CombineOutput& output, Stream stream) {
  state().current().combine(mine, output, stream);
}
void ExternalPlan::gather_queries(const ConstTensorView& share, const TensorView& q,
                                  Stream stream) {
  state().current().gather_queries(share, q, stream);
}
IndexRange ExternalPlan::tokens_of_output() const { return state().made().tokens_of_output(); }
IndexRange ExternalPlan::heads_of_output() const { return state().made().heads_of_output(); }
const Participation& ExternalPlan::participation() const { return state().participation(); }
TileCounts ExternalPlan::tiles() const { return state().tiles(); }
std::int64_t ExternalPlan::workspace_bytes() const { return state().made().workspace_bytes(); }
std::int64_t ExternalPlan::host_bytes() const { return state().made().host_bytes(); }
std::uint64_t ExternalPlan::generation() const { return state().made().generation(); }

ExternalPlan ExternalPool::plan(const PageTables& given, const PlanOptions& options,
                                Stream stream) {
  const PageTables tables = state().reader.read(given, state().mesh, stream);
  const TableRules rules = state().rules_for(tables);
  const auto sizes =
      TableBatch::check(rules, tables, {options.q_positions, options.block_mask, options.limits});
  require(options.kinds.empty(), "plan: kinds of layers, of a pool that has no layers' numbers");
  require(tables.list_length == 0 || !reads_batch(options),
          "page tables: a mod that reads the batch row, with token lists");
  state().wait_for_peers();
  auto step = std::make_unique<ExternalPlan::State>(state_, rules, tables, options);
  step->plan(tables, sizes, options.q_positions, {});
  state().mesh.wait({}, "plan");
  return ExternalPlan(std::move(step));
}

void ExternalPool::replan(ExternalPlan& step, const PageTables& given, Stream stream,
                          std::span<const std::int64_t> q_positions) {
  ExternalPlan::State& planned = step.state();
  require(planned.is_of(state()), "replan: the plan is another pool's");
  const PageTables tables = state().reader.read(given, state().mesh, stream);
  require(state().rules_for(tables).units.tokens == planned.rules().units.tokens,
          "replan: token lists, of a plan without them, or none of a plan with them");
  const auto sizes = TableBatch::check(planned.rules(), tables, planned.step_rules(q_positions));
  planned.plan(tables, sizes, q_positions, stream);
}

}  // namespace kvmesh
