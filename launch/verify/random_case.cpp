#include "launch/verify/random_case.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "kvmesh/draft_trees.hpp"
#include "launch/verify/checked_cache.hpp"
#include "launch/verify/random_config.hpp"
#include "launch/verify/random_mods.hpp"

namespace kvmesh::verify {
namespace {

const std::vector<Dtype> kTensorDtypes{Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};
constexpr int kMostDrafts = 8;

class Simulation {
 public:
  Simulation(Mesh& mesh, const CaseConfig& config, Random& random)
      : config_(config),
        random_(random),
        cache_(mesh, config.cache, static_cast<std::uint64_t>(random.integer(0, 1 << 30))),
        moves_(cache_, config.moves, random) {}

  Findings run() {
    for (std::int64_t i = 0; i < config_.steps; ++i) {
      change_sequences();
      step();
      moves_.between_steps();
      if (i % 4 == 0) cache_.check_replicas();
    }
    while (!alive_.empty()) erase_any();
    moves_.end();
    cache_.check_replicas();
    return cache_.findings();
  }
  std::vector<std::string> kernels() { return cache_.cache().kernel_programs(); }
  const MovedPages& moved() const { return moves_.moved(); }

 private:
  std::int64_t length(SequenceId sequence) const { return cache_.allocator().length(sequence); }
  /// The earliest position whose query sees no page that was given up, in any group.
  std::int64_t earliest(SequenceId sequence) {
    std::int64_t position = 0;
    KvCache& cache = cache_.cache();
    for (int group = 0; group < cache.groups(); ++group) {
      const std::int64_t released = cache.allocator(group).released_pages(sequence);
      const CacheOptions& options = config_.cache;
      const std::int64_t window = group == 0 ? options.window : options.groups[0].window;
      if (released > 0) position = std::max(position, released * options.page_size + window - 1);
    }
    return position;
  }
  bool has_windows() const {
    return config_.cache.window > 0 ||
           (!config_.cache.groups.empty() && config_.cache.groups[0].window > 0);
  }
  bool room_for_one_more() const { return std::ssize(alive_) < config_.max_sequences; }

  void change_sequences() {
    while (alive_.empty() || (room_for_one_more() && random_.coin())) {
      alive_.push_back(cache_.create());
    }
    if (room_for_one_more() && random_.one_in(3)) {
      alive_.push_back(cache_.fork(random_.pick(alive_)));
    }
    if (random_.one_in(4)) truncate_any();
    if (random_.one_in(5)) {
      const SequenceId sequence = random_.pick(alive_);
      (void)cache_.try_reserve(sequence, length(sequence) + random_.integer(0, config_.max_append));
    }
    if (alive_.size() > 1 && random_.one_in(6)) erase_any();
  }

  void truncate_any() {
    const SequenceId sequence = random_.pick(alive_);
    const std::int64_t kept = random_.integer(earliest(sequence), length(sequence));
    cache_.truncate(sequence, random_.one_in(8) ? 0 : kept);
  }

  void erase_any() {
    const auto at = random_.integer(0, std::ssize(alive_) - 1);
    cache_.erase(alive_[static_cast<std::size_t>(at)]);
    alive_.erase(alive_.begin() + at);
  }

  BatchEntry random_entry(SequenceId sequence) {
    BatchEntry entry{.sequence = sequence};
    switch (random_.integer(0, 5)) {
      case 0:  // append without a query, or nothing at all
        entry.append_tokens = random_.coin() ? random_.integer(0, config_.max_append) : 0;
        entry.query_tokens = 0;
        break;
      case 1:  // a chunk of a prompt, all of it queries if that is not too much
        entry.append_tokens = random_.integer(1, config_.max_append);
        if (entry.append_tokens > config_.max_queries) entry.query_tokens = config_.max_queries;
        break;
      case 2:  // more queries than new tokens
        entry.append_tokens = random_.integer(0, 3);
        entry.query_tokens = std::min(length(sequence) + entry.append_tokens - earliest(sequence),
                                      random_.integer(0, config_.max_queries));
        break;
      case 3:  // speculation
        entry.append_tokens = random_.integer(2, 5);
        break;
      default:
        entry.append_tokens = 1;
    }
    return entry;
  }

  std::vector<BatchEntry> random_batch() {
    std::vector<BatchEntry> batch;
    std::vector<SequenceId> waiting = alive_;
    while (!waiting.empty()) {
      const auto at = random_.integer(0, std::ssize(waiting) - 1);
      if (!random_.one_in(4)) {
        batch.push_back(random_entry(waiting[static_cast<std::size_t>(at)]));
      }
      waiting.erase(waiting.begin() + at);
    }
    return batch;
  }

  // Positions before, in and after the sequence, in any order.
  std::vector<std::int64_t> random_positions(const std::vector<BatchEntry>& batch) {
    std::vector<std::int64_t> positions;
    for (const BatchEntry& entry : batch) {
      const std::int64_t last = length(entry.sequence) + entry.append_tokens + 2;
      const std::int64_t queries =
          entry.query_tokens < 0 ? entry.append_tokens : entry.query_tokens;
      for (std::int64_t i = 0; i < queries; ++i) {
        positions.push_back(random_.integer(earliest(entry.sequence), last));
      }
    }
    return positions;
  }

  std::optional<CheckedBlockMask> random_block_mask(const std::vector<BatchEntry>& batch,
                                                    const MaskMod& mask) {
    BlockMaskShape shape{.batch = std::ssize(batch),
                         .heads = has_equal_q_heads(config_.cache) ? config_.cache.q_heads : 1,
                         .q_block = random_.pick(std::vector{1, 2, 5, 16, 128}),
                         .kv_block = config_.cache.page_size};
    for (const BatchEntry& entry : batch) {
      const std::int64_t kv_len = length(entry.sequence) + entry.append_tokens;
      const std::int64_t queries =
          entry.query_tokens < 0 ? entry.append_tokens : entry.query_tokens;
      shape.kv_len = std::max(shape.kv_len, kv_len);
      shape.q_len = std::max(shape.q_len, queries);
      shape.q_start.push_back(static_cast<std::int32_t>(kv_len - queries));
    }
    if (shape.batch == 0 || shape.kv_len == 0 || shape.q_len == 0) return std::nullopt;
    // One list for all heads cannot be made from a mask that depends on them.
    return shape.heads > 1 && random_.coin() ? created_block_mask(mask, shape)
                                             : listed_block_mask(random_, mask, shape);
  }

  /// Not far above 1 / sqrt(k_dim): `kTolerance` is for dot products of that size.
  float random_scale() {
    const float usual = 1.0f / std::sqrt(static_cast<float>(config_.cache.k_dim));
    return std::min(0.25f, usual) * (1.0f + random_.real());
  }

  void draw_attention(PlanOptions& plan) {
    plan.mask = random_mask(random_, q_heads_, config_.max_append).mask;
    plan.score = random_score(random_, q_heads_).score;
    if (random_.one_in(4)) plan.scale = random_scale();
    plan.scatter = random_.pick(
        std::vector{Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner});
    plan.strategy = random_.pick(std::vector{
        CombineStrategy::kAuto, CombineStrategy::kReduceScatter, CombineStrategy::kAllToAll});
    if (plan.scatter == Scatter::kOwner) plan.strategy = CombineStrategy::kAuto;
  }

  // Gives some plans positions of their queries, and others a block mask, which is returned.
  std::optional<CheckedBlockMask> draw_positions(const std::vector<BatchEntry>& batch,
                                                 PlanOptions& plan) {
    if (random_.one_in(4)) {
      plan.q_positions = random_positions(batch);
    } else if (random_.one_in(4) && !has_windows()) {
      return random_block_mask(batch, plan.mask);
    }
    return std::nullopt;
  }

  void draw_kinds(PlanOptions& plan) {
    if (!random_.one_in(3)) return;
    plan.kinds = {{.layers = {config_.cache.layers - 1},
                   .mask = random_mask(random_, q_heads_, config_.max_append).mask,
                   .score = random_score(random_, q_heads_).score}};
  }

  void draw_run(bool has_block_mask, StepOptions& options) {
    if (random_.coin()) options.plan.least_saved_tokens = random_.integer(0, 30);
    if (random_.one_in(4)) {
      const std::int64_t unit = std::lcm(std::int64_t{128}, std::int64_t{config_.cache.page_size});
      options.plan.fixed_split_tokens = unit * random_.integer(1, 2);
    }
    options.input = random_.pick(kTensorDtypes);
    options.output = random_.coin() ? Dtype::kFloat32 : random_.pick(kTensorDtypes);
    options.lse = random_.coin();
    options.sinks = random_.one_in(3);
    options.in_parts = random_.one_in(3);
    options.replanned = !has_block_mask && random_.coin();
    options.gathers = random_.one_in(3);
  }

  /// Gives some plans room for larger batches, as captured graphs have. A GPU then takes at most 64
  /// rows of a sequence and KV head.
  void draw_limits(const std::vector<BatchEntry>& batch, PlanOptions& plan) {
    if (plan.block_mask || !random_.one_in(3)) return;
    const std::int64_t most = std::max(1, 64 / most_heads_of_a_kv_head(config_.cache));
    std::int64_t tokens = 1;
    for (const BatchEntry& entry : batch) {
      tokens = std::max({tokens, entry.append_tokens, entry.query_tokens});
    }
    if (tokens > most) return;
    plan.limits = {
        .sequences = std::max<std::int64_t>(1, std::ssize(batch) + random_.integer(0, 2)),
        .query_tokens = random_.integer(tokens, std::min(most, tokens + 3)),
        .pages = random_.coin() ? 0 : random_.integer(1, config_.cache.pages_per_rank),
        .shares_prefixes = random_.coin()};
  }

  void step() {
    const std::vector<BatchEntry> batch = random_batch();
    StepOptions options;
    PlanOptions& plan = options.plan;
    draw_attention(plan);
    const std::optional<CheckedBlockMask> blocks = draw_positions(batch, plan);
    if (blocks) {
      plan.block_mask = &blocks->blocks;
      options.visible = blocks->visible;
      plan.mask = mods::no_mask();  // that of the block mask counts, not this
    } else {
      draw_kinds(plan);
    }
    draw_limits(batch, plan);
    draw_run(blocks.has_value(), options);
    if (random_.one_in(4)) draw_external(batch, options);
    std::vector<KeptTokens> accepted;
    if (!blocks && plan.q_positions.empty() && options.lists.empty() && random_.one_in(4)) {
      accepted = draw_trees(batch);
      plan.mask = trees_.mask();
    }
    const bool done = cache_.step(batch, options);
    if (done && !accepted.empty()) cache_.try_compact(accepted);
    if (!done && alive_.size() > 1) erase_any();
  }

  // Makes the new tokens of some rows a draft tree. Returns what is accepted of each.
  std::vector<KeptTokens> draw_trees(const std::vector<BatchEntry>& batch) {
    std::vector<KeptTokens> accepted;
    for (int row = 0; row < static_cast<int>(batch.size()); ++row) {
      const BatchEntry& entry = batch[static_cast<std::size_t>(row)];
      const std::int64_t first = length(entry.sequence), drafts = entry.append_tokens;
      trees_.clear(row);
      // Each draft is a query, so that no window moves past the first one.
      if (drafts == 0 || drafts > kMostDrafts || entry.query_tokens >= 0) continue;
      std::vector<std::int32_t> parents;
      KeptTokens kept{.sequence = entry.sequence, .begin = first, .kept = {}};
      for (std::int64_t i = 0; i < drafts; ++i) {
        parents.push_back(static_cast<std::int32_t>(random_.integer(-1, i - 1)));
        if (i == 0 || random_.coin()) kept.kept.push_back(first + i);
      }
      trees_.set(row, first, parents);
      accepted.push_back(kept);
    }
    return accepted;
  }

  /// Lets page tables take the place of the cache's own plans, where they can.
  void draw_external(const std::vector<BatchEntry>& batch, StepOptions& options) {
    PlanOptions& plan = options.plan;
    if (config_.cache.reproducible || plan.scatter == Scatter::kOwner) return;
    options.external = true;
    options.engine = config_.engine;
    if (plan.block_mask || !random_.one_in(3)) return;
    options.lists = random_lists(batch);
    plan.kinds.clear();  // their mods, as these, may read the batch row
    plan.mask = random_.coin() ? mods::causal() : mods::no_mask();
    plan.score = random_.coin() ? mods::soft_cap(5.0f) : ScoreMod();
  }

  // In any order, some twice, with padding anywhere.
  TokenLists random_lists(const std::vector<BatchEntry>& batch) {
    TokenLists lists{.positions = {}, .length = random_.integer(1, 40)};
    for (const BatchEntry& entry : batch) {
      const std::int64_t last = length(entry.sequence) + entry.append_tokens - 1;
      const std::int64_t queries =
          entry.query_tokens < 0 ? entry.append_tokens : entry.query_tokens;
      for (std::int64_t i = 0; i < queries * lists.length; ++i) {
        const std::int64_t drawn = random_.one_in(4) ? -1 : random_.integer(-1, last);
        lists.positions.push_back(static_cast<std::int32_t>(drawn));
      }
    }
    return lists;
  }

  const CaseConfig& config_;
  const int q_heads_ = most_q_heads(config_.cache);  // for which mods are made
  Random& random_;
  CheckedCache cache_;
  RandomMoves moves_;
  mods::DraftTrees trees_{static_cast<int>(config_.max_sequences), kMostDrafts};
  std::vector<SequenceId> alive_;
};

}  // namespace

CaseRunner::CaseRunner(Mesh& mesh, const CaseRules& rules) : rules_(rules) {
  const bool on_gpu = mesh.device().kind == DeviceKind::kCuda;
  if (on_gpu && rules.reproducible && rules.kv_scales) {
    throw InvalidArgument("verify: reproducible caches on GPUs have no float8 pages");
  }
  for (int heads : {1, 2, 4}) {
    if (mesh.size() % heads != 0) continue;
    Mesh& made = arrangements_.emplace_back(
        mesh.world(), MeshOptions{.head_parallel = heads,
                                  .threads = mesh.threads().threads(),
                                  .device = on_gpu ? DeviceChoice::kCuda : DeviceChoice::kCpu});
    for (Communicator* comm : {&made.kv_comm(), &made.head_comm()}) {
      comm->set_deadline(mesh.world().deadline());
    }
  }
}

CaseResult CaseRunner::run(std::uint64_t seed) {
  Random random(seed);
  Mesh& mesh = arrangements_[static_cast<std::size_t>(
      random.one_in(3) ? random.integer(0, std::ssize(arrangements_) - 1) : 0)];
  CaseConfig config = random_config(random, mesh);
  if (rules_.kv_scales) give_scales(config, *rules_.kv_scales, random);
  if (rules_.reproducible) make_reproducible(config, mesh.device());
  Simulation simulation(mesh, config, random);
  Findings findings = simulation.run();
  return {describe(config, mesh), config.steps, std::move(findings), simulation.kernels(),
          simulation.moved()};
}

}  // namespace kvmesh::verify
