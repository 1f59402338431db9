#include "kernels/cuda/plan/device_plan.hpp"

#include <algorithm>
#include <limits>

#include "core/check.hpp"
#include "kernels/cuda/plan/kernels.hpp"
#include "kernels/cuda/plan/split.hpp"

namespace kvmesh::cuda {
namespace {

std::int32_t to_int32(std::int64_t value) { return static_cast<std::int32_t>(value); }

}  // namespace

DevicePlan::DevicePlan(KernelStore& kernels, const Options& options, const DeviceMods& mods,
                       std::optional<BlockClasses> block_mask)
    : options_(options),
      group_(options.shape.q_heads / options.shape.kv_heads),
      block_mask_(std::move(block_mask)),
      per_head_(block_mask_ ? block_mask_->heads() > 1
                            : options.mask.graph().depends_on(kDependsHead)),
      classifier_(kernels, mods,
                  {.page_size = options.shape.page_size, .group = group_, .per_head = per_head_}) {
  for (std::size_t i = 0; i < launches_.size(); ++i) {
    launches_[i].shape = options.launches[i];
    launches_[i].block_tokens = std::max(1, options.launches[i].rows / group_);
  }
}

void DevicePlan::prepare(const PageLists& pages, const StepView& step) {
  add_sequences(pages, step);
  share_prefixes(pages, step);
  query_blocks_.clear();
  candidates_ = query_block_tokens_ = 0;
  merges_all_ = step.merges_all;
  // Shared blocks first: the others name them by their numbers.
  for (const LaunchKind kind : {kSharedLaunch, kShortLaunch, kLongLaunch}) add_query_blocks(kind);
  shape_launches();
  reserve_arrays(candidates_, std::ssize(query_blocks_));
}

void DevicePlan::start(const LocalPage* pages, cudaStream_t stream) {
  sent_.pages = pages;
  classify(stream);
  list_visits(stream);
  split(stream);
}

void plan_together(std::span<DevicePlan* const> plans, PageLists& pages, const StepView& step,
                   Upload& upload, cudaStream_t stream) {
  std::size_t bytes = pages.upload_bytes();
  for (DevicePlan* plan : plans) {
    plan->prepare(pages, step);
    bytes += plan->upload_bytes();
  }
  pages.begin(stream);
  upload.begin(bytes);
  for (DevicePlan* plan : plans) plan->add_to(upload);
  pages.add_to(upload);
  upload.send(stream);
  pages.apply(stream);
  for (DevicePlan* plan : plans) plan->start(pages.data(), stream);
  pages.end(stream);
}

// ---- Checks ----

void DevicePlan::check_plan(std::span<const SequenceSize> sequences) const {
  std::int64_t tokens = 0, appended = 0, candidates = 0, longest = 0;
  for (const SequenceSize& sequence : sequences) {
    const Launch& launch = launches_[is_short(sequence.queries) ? kShortLaunch : kLongLaunch];
    const std::int64_t pages = ceil_div(sequence.length, options_.shape.page_size);
    candidates += pages * most_query_blocks(sequence.queries, launch);
    tokens += sequence.queries;
    appended += sequence.appended;
    longest = std::max({longest, sequence.queries, sequence.appended});
  }
  std::int64_t most = kMostPages;  // of one sequence; int32 could count more of all together
  if (per_head_ && block_mask_) most /= group_;  // there is a class for each head
  require(std::max({candidates, tokens, appended}) < most,
          "attention: {} query tokens that read {} pages together are more than one plan can have",
          tokens, candidates);
  if (!limits_) return;
  require(std::ssize(sequences) <= limits_->sequences && longest <= limits_->queries,
          "attention: {} sequences with up to {} tokens each, the plan has room for {} with {}",
          sequences.size(), longest, limits_->sequences, limits_->queries);
}

// ---- Launches and memory ----

/// The most shared blocks. Each but a prefix's last has two sequences or more, and a prefix has
/// two, so of three sequences there are at most two blocks.
std::int64_t DevicePlan::shared_blocks() const {
  if (!limits_) return std::ssize(shared_.blocks);
  return shares() ? limits_->sequences * 2 / 3 : 0;
}

/// The most query blocks of a launch beside the shared ones.
std::int64_t DevicePlan::most_own_blocks(LaunchKind kind) const {
  const Launch& launch = launches_[kind];
  if (!limits_ || kind == kLongLaunch) {
    return launch.query_blocks - (kind == kSharedLaunch ? shared_blocks() : 0);
  }
  if (kind == kSharedLaunch) return shares() ? limits_->sequences : 0;
  return limits_->sequences * most_query_blocks(limits_->queries, launch);
}

/// Whole pages of a piece of fixed-split mode.
std::int64_t DevicePlan::visits_of_piece() const {
  return options_.fixed_split_tokens / options_.shape.page_size;
}

/// The blocks of sequences of this many queries stay whole in fixed-split mode. Few rows are always
/// split: their partials are small.
std::int64_t DevicePlan::whole_queries(LaunchKind kind) const {
  if (!is_fixed_split() || kind != kLongLaunch) return std::numeric_limits<std::int32_t>::max();
  return queries_of_whole_blocks(launches_[kind].block_tokens, options_.shape.kv_heads);
}

/// The most splits of the step if a mask leaves all pages or, with limits, of any step within
/// these, where each sequence may have one piece that is not full.
DevicePlan::Splits DevicePlan::most_fixed_splits(LaunchKind kind) const {
  const Launch& launch = launches_[kind];
  const std::int64_t visits = visits_of_piece(), heads = kv_heads_of_query_block();
  Splits splits;
  // Rows are those of all heads, whether a query block has all of them or one kv head's.
  const auto add = [&](std::int64_t queries, std::int64_t pieces) {
    splits.pieces += heads * most_query_blocks(queries, launch) * pieces;
    splits.rows += options_.shape.q_heads * queries * pieces;
  };
  const auto sequences = to_int32(std::ssize(sequences_) - std::ssize(shared_.blocks));
  for (std::int32_t s = 0; s < sequences; ++s) {
    const PlanSequence& it = sequences_[static_cast<std::size_t>(s)];
    if (launch_of(s) != kind || it.pages <= visits || it.queries >= whole_queries(kind)) continue;
    add(it.queries, ceil_div(it.pages, visits));
  }
  if (!limits_ || kind != kShortLaunch) return splits;
  const Splits of_step = splits;
  splits = {};
  add(limits_->queries, limits_->pages / visits + limits_->sequences);
  return {std::max(splits.pieces, of_step.pieces), std::max(splits.rows, of_step.rows)};
}

/// The most splits of a launch that has blocks.
DevicePlan::Splits DevicePlan::most_splits(LaunchKind kind) const {
  if (is_fixed_split()) return most_fixed_splits(kind);
  const Launch& launch = launches_[kind];
  const bool is_of_graph = limits_ && kind != kLongLaunch;
  const bool may_split =
      is_of_graph || launch.most_blocks < kManyBlocks * launch.shape.resident_blocks;
  if (!may_split) return {};
  const std::int64_t pieces = kSplitsPerResidentBlock * launch.shape.resident_blocks;
  return {pieces, pieces * rows_of_block(launch)};
}

/// Computes grids, and the most tasks, merges and rows of workspace of the launches.
void DevicePlan::shape_launches() {
  most_merges_ = merge_rows_ = 0;
  workspace_rows_ = 0;
  for (const LaunchKind kind : {kShortLaunch, kLongLaunch, kSharedLaunch}) {
    Launch& launch = launches_[kind];
    const bool is_fixed = limits_ && kind != kLongLaunch;
    const std::int64_t resident = launch.shape.resident_blocks, heads = kv_heads_of_query_block();
    const std::int64_t shared = kind == kSharedLaunch ? heads * shared_blocks() : 0;
    const std::int64_t own = heads * most_own_blocks(kind);
    launch.most_blocks = shared + own;
    launch.planned.grid = launch.most_blocks == 0 ? 0 : to_int32(resident);
    const Splits splits = launch.most_blocks == 0 ? Splits{} : most_splits(kind);
    launch.most_splits = to_int32(splits.pieces);
    launch.first_workspace_row = to_int32(workspace_rows_);
    // Blocks that go through the workspace also if they are not split.
    const std::int64_t members =
        shares() && kind != kLongLaunch ? (limits_ ? own : heads * members_) : 0;
    const std::int64_t whole = merges_all_ ? own : std::min(own, members);
    if (launch.most_splits + shared + whole == 0) continue;
    const Launch& of_own = launches_[kind == kLongLaunch ? kLongLaunch : kShortLaunch];
    workspace_rows_ += splits.rows + shared * rows_of_block(launch) + whole * rows_of_block(of_own);
    // A graph's sequences are in one of both launches.
    if (!limits_ || kind != kSharedLaunch) {
      most_merges_ += std::min(own, whole + launch.most_splits / 2);
    }
    merge_rows_ = std::max(merge_rows_,
                           is_fixed ? to_int32(limits_->queries) * group_ : rows_of_block(of_own));
  }
}

template <class... Arrays>
void DevicePlan::grow(std::int64_t count, Arrays&... arrays) {
  ((generation_ += arrays.reserve(static_cast<std::size_t>(count))), ...);
}

void DevicePlan::reserve_arrays(std::int64_t candidates, std::int64_t query_blocks) {
  grow(std::max(candidates, std::int64_t{1}), classes_, visits_);
  if (per_head_ && block_mask_) grow(candidates * group_, head_classes_);
  grow(query_blocks, visits_of_query_block_, order_);
  grow(std::max(tokens_, std::int64_t{1}), positions_);
  grow(std::max(token_slot_count_, std::int64_t{1}), token_slots_);
  if (launches_[kSharedLaunch].most_blocks > 0) {
    grow(2 * tokens_, row_tokens_);
    grow(shared_blocks() * kv_heads_of_query_block(), shared_partials_);
  }
  grow(most_merges_, merges_);
  grow(1, counters_);
  for (std::size_t i = 0; i < launches_.size(); ++i) {
    Launch& launch = launches_[i];
    if (launch.planned.grid == 0) continue;
    grow(std::max<std::int64_t>(launch.most_blocks + launch.most_splits, launch.planned.grid),
         launch.tasks);
    launch.planned.tasks = launch.tasks.data();
    launch.planned.task_counts = counters_.data()->launches + i;
    launch.planned.claim = counters_.data()->claims + i;
  }
}

void DevicePlan::reserve(const AttendLimits& limits) {
  limits_ = limits;
  merges_all_ = limits.merges_all;
  if (evaluates_mask()) {
    classifier_.prepare(
        std::min<std::int64_t>(limits.queries, launches_[kShortLaunch].block_tokens));
  }
  const std::int64_t query_blocks = most_query_blocks(limits.queries, launches_[kShortLaunch]);
  tokens_ = token_slot_count_ = limits.sequences * limits.queries;
  shape_launches();
  reserve_arrays(limits.pages * query_blocks, limits.sequences * query_blocks + shared_blocks());
}

std::size_t DevicePlan::most_upload_bytes() const {
  if (!limits_) return 0;
  const std::int64_t query_blocks = most_query_blocks(limits_->queries, launches_[kShortLaunch]);
  // New pages: those of the new tokens, and one that copy on write replaces.
  const auto sequences = static_cast<std::size_t>(limits_->sequences);
  const auto fresh =
      static_cast<std::size_t>(ceil_div(limits_->queries, options_.shape.page_size)) + 2;
  const auto shared = static_cast<std::size_t>(shared_blocks());
  return Upload::bytes_of<PlanSequence>(sequences + shared) +
         Upload::bytes_of<QueryBlock>(sequences * static_cast<std::size_t>(query_blocks) + shared) +
         2 * Upload::bytes_of<std::int32_t>(static_cast<std::size_t>(tokens())) +
         Upload::bytes_of<PageChange>(sequences * fresh) + Upload::bytes_of<ListMove>(sequences);
}

// ---- On the device ----

std::size_t DevicePlan::upload_bytes() const {
  return Upload::bytes_of<PlanSequence>(sequences_.size()) +
         Upload::bytes_of<QueryBlock>(query_blocks_.size()) +
         Upload::bytes_of<std::int32_t>(q_positions_.size()) +
         Upload::bytes_of<std::int32_t>(shared_tokens_.size());
}

void DevicePlan::add_to(Upload& upload) {
  sent_ = {.sequences = upload.add(std::span<const PlanSequence>(sequences_)),
           .query_blocks = upload.add(std::span<const QueryBlock>(query_blocks_)),
           .pages = nullptr,  // set once they have their room
           .q_positions = q_positions_.empty()
                              ? nullptr
                              : upload.add(std::span<const std::int32_t>(q_positions_)),
           .classes = classes_.data(),
           .sequence_count = to_int32(std::ssize(sequences_) - std::ssize(shared_.blocks)),
           .query_block_count = to_int32(std::ssize(query_blocks_)),
           .candidate_count = to_int32(candidates_),
           .page_size = options_.shape.page_size,
           .group = group_,
           .first_head = options_.first_head};
  shared_tokens_sent_ = upload.add(std::span<const std::int32_t>(shared_tokens_));
}

void DevicePlan::classify(cudaStream_t stream) {
  if (evaluates_mask()) return classifier_.classify(sent_, query_block_tokens_, stream);
  const ClassTable table = block_mask_ ? block_mask_->table() : ClassTable{};
  check(launch_look_up(sent_, table, stream), "planning: classes of pages");
}

void DevicePlan::list_visits(cudaStream_t stream) {
  check(launch_list({.candidates = sent_,
                     .table = block_mask_ ? block_mask_->table() : ClassTable{},
                     .visits = visits_.data(),
                     .head_classes = head_classes_.data(),
                     .positions = positions_.data(),
                     .token_slots = token_slots_.data(),
                     .token_slot_count = to_int32(token_slot_count_),
                     .row_tokens = shared_.blocks.empty() ? nullptr : row_tokens_.data(),
                     .shared_tokens = shared_tokens_sent_,
                     .shared_token_count = to_int32(std::ssize(shared_tokens_)),
                     .token_count = to_int32(tokens_),
                     .visits_of_query_block = visits_of_query_block_.data(),
                     .query_tokens = &counters_.data()->query_tokens},
                    stream),
        "planning: visits");
}

void DevicePlan::split(cudaStream_t stream) {
  bool is_first = true;
  // Shared rows before short ones: the merges of these find their partials.
  for (const LaunchKind kind : kLaunchOrder) {
    if (launches_[kind].planned.grid == 0) continue;
    split(kind, is_first, stream);
    is_first = false;
  }
}

void DevicePlan::split(LaunchKind kind, bool is_first, cudaStream_t stream) {
  const Launch& launch = launches_[kind];
  PlanCounters* const counters = counters_.data();
  const int page_size = options_.shape.page_size;
  const int tile_keys = launch.shape.tile_keys;
  const int split_unit_visits =
      is_fixed_split() ? to_int32(visits_of_piece()) : std::max(1, tile_keys / page_size);
  check(launch_split({.candidates = sent_,
                      .first_query_block = launch.first_query_block,
                      .query_block_count = launch.query_blocks,
                      .kv_heads_of_query_block = kv_heads_of_query_block(),
                      .resident_blocks = kind == kSharedLaunch ? resident_shared_blocks_
                                                               : launch.shape.resident_blocks,
                      .grid = launch.planned.grid,
                      .multiprocessors = launch.shape.multiprocessors,
                      .rule = launch.shape.rule,
                      .split_unit_visits = split_unit_visits,
                      .split_unit_tiles = to_int32(
                          ceil_div(std::int64_t{split_unit_visits} * page_size, tile_keys)),
                      .is_fixed = is_fixed_split(),
                      .whole_queries = to_int32(whole_queries(kind)),
                      .most_splits = launch.most_splits,
                      .first_workspace_row = launch.first_workspace_row,
                      .is_first = is_first,
                      .merges_all = merges_all_,
                      .visits_of_query_block = visits_of_query_block_.data(),
                      .visits = visits_.data(),
                      .order = order_.data() + launch.first_query_block,
                      .tasks = launch.tasks.data(),
                      .task_counts = counters->launches + kind,
                      .tasks_made = &counters->tasks,
                      .claim = counters->claims + kind,
                      .merges = merges_.data(),
                      .merges_made = &counters->merges,
                      .shared = shared_.blocks.empty() ? nullptr : shared_partials_.data()},
                     stream),
        "planning: tasks");
}

// ---- The plan on the device ----

TileCounts DevicePlan::tiles() const {
  const auto download = [](auto& to, const auto& from) {
    check(cudaMemcpy(to.data(), from.data(), to.size() * sizeof(to[0]), cudaMemcpyDeviceToHost),
          "reading a plan");
  };
  std::vector<std::int32_t> visits_of_query_block(query_blocks_.size());
  std::vector<PageVisit> visits(static_cast<std::size_t>(candidates_));
  download(visits_of_query_block, visits_of_query_block_);
  download(visits, visits_);
  TileCounts tiles;
  for (std::size_t l = 0; l < query_blocks_.size(); ++l) {
    const auto first = visits.begin() + query_blocks_[l].first_candidate;
    tiles.visited += visits_of_query_block[l] * kv_heads_of_query_block();
    tiles.masked += kv_heads_of_query_block() *
                    std::count_if(first, first + visits_of_query_block[l],
                                  [](const PageVisit& visit) { return visit.masked != 0; });
  }
  return tiles;
}

std::int64_t DevicePlan::size_bytes() const {
  const auto sum = [](const auto&... arrays) { return (arrays.size_bytes() + ...); };
  std::size_t bytes =
      sum(classes_, visits_of_query_block_, order_, visits_, head_classes_, positions_, row_tokens_,
          shared_partials_, token_slots_, merges_, counters_);
  for (const Launch& launch : launches_) bytes += launch.tasks.size_bytes();
  if (block_mask_) bytes += block_mask_->size_bytes();
  return static_cast<std::int64_t>(bytes);
}

}  // namespace kvmesh::cuda
