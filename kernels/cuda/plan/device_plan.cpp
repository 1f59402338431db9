#include "kernels/cuda/plan/device_plan.hpp"

#include <algorithm>

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

void DevicePlan::plan(PageLists& pages, const StepView& step, cudaStream_t stream) {
  add_sequences(pages, step);
  query_blocks_.clear();
  candidates_ = query_block_tokens_ = 0;
  merges_all_ = step.merges_all;
  for (Launch& launch : launches_) add_query_blocks(launch);
  shape_launches();
  reserve_arrays(candidates_, std::ssize(query_blocks_));
  pages.begin(stream);
  PlanCandidates candidates = send(pages, stream);
  pages.apply(stream);
  candidates.pages = pages.data();
  classify(candidates, stream);
  list_visits(candidates, stream);
  split(candidates, stream);
  pages.end(stream);
}

// ---- Checks ----

void DevicePlan::check_plan(std::span<const SequenceSize> sequences) const {
  std::int64_t tokens = 0, appended = 0, candidates = 0, longest = 0;
  for (const SequenceSize& sequence : sequences) {
    const Launch& launch = launches_[is_short(sequence.queries) ? 0 : 1];
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

void DevicePlan::add_sequences(const PageLists& pages, const StepView& step) {
  sequences_.clear();
  q_positions_.assign(step.q_positions.begin(), step.q_positions.end());
  std::int32_t token = 0, token_slot = 0;
  for (const StepSequence& sequence : step.sequences) {
    sequences_.push_back({.first_page = pages.first_page(sequence.list),
                          .pages = to_int32(pages.size(sequence.list)),
                          .first_token = token,
                          .queries = to_int32(sequence.size.queries),
                          .kv_len = to_int32(sequence.size.length),
                          .first_token_slot = token_slot,
                          .appended = to_int32(sequence.size.appended),
                          .counts_sinks = sequence.counts_sinks});
    token += sequences_.back().queries;
    token_slot += sequences_.back().appended;
  }
  tokens_ = token;
  if (!limits_) token_slot_count_ = token_slot;
}

// ---- Query blocks ----

bool DevicePlan::is_short(std::int64_t queries) const {
  return queries * group_ <= launches_[0].shape.rows;
}

/// Returns the most query blocks of a sequence: no query block crosses a q block, and each kv head
/// may have its own.
std::int64_t DevicePlan::most_query_blocks(std::int64_t queries, const Launch& launch) const {
  const std::int64_t heads = per_head_ ? options_.shape.kv_heads : 1;
  if (queries <= launch.block_tokens && !block_mask_) return heads;
  const std::int64_t blocks = ceil_div(queries, launch.block_tokens);
  return heads * (block_mask_ ? blocks + ceil_div(queries, block_mask_->q_block()) : blocks);
}

void DevicePlan::add_query_blocks(Launch& launch) {
  const bool takes_short = &launch == &launches_[0];
  launch.first_query_block = to_int32(std::ssize(query_blocks_));
  for (std::int32_t s = 0; s < std::ssize(sequences_); ++s) {
    const bool is_its = is_short(sequences_[static_cast<std::size_t>(s)].queries) == takes_short;
    if (is_its) add_query_blocks_of(s, launch);
  }
  launch.query_blocks = to_int32(std::ssize(query_blocks_)) - launch.first_query_block;
}

void DevicePlan::add_query_blocks_of(std::int32_t s, const Launch& launch) {
  const PlanSequence& sequence = sequences_[static_cast<std::size_t>(s)];
  for (std::int32_t q = 0; q < sequence.queries;) {
    std::int32_t end = std::min(sequence.queries, q + launch.block_tokens);
    std::int32_t q_block = 0;
    if (block_mask_) {  // no query block crosses a q block
      q_block = q / block_mask_->q_block();
      end = std::min(end, (q_block + 1) * block_mask_->q_block());
    }
    for (int head = 0; head < (per_head_ ? options_.shape.kv_heads : 1); ++head) {
      // Written in place: a copy would read wider than the last write, and wait for it.
      query_blocks_.emplace_back() = {.sequence = s,
                                      .first_token = sequence.first_token + q,
                                      .tokens = end - q,
                                      .kv_head = head,
                                      .q_block = q_block,
                                      .first_candidate = to_int32(candidates_),
                                      .unused = {}};
      candidates_ += sequence.pages;
    }
    query_block_tokens_ = std::max(query_block_tokens_, end - q);
    q = end;
  }
}

// ---- Launches and memory ----

/// Computes grids, and the most tasks, merges and rows of workspace of the launches.
void DevicePlan::shape_launches() {
  most_merges_ = merge_rows_ = 0;
  workspace_rows_ = 0;
  for (Launch& launch : launches_) {
    const bool is_fixed = limits_ && &launch == &launches_[0];
    const std::int64_t resident = launch.shape.resident_blocks;
    launch.most_blocks =
        kv_heads_of_query_block() *
        (is_fixed ? limits_->sequences * most_query_blocks(limits_->queries, launch)
                  : launch.query_blocks);
    const bool may_split = is_fixed || launch.most_blocks < kManyBlocks * resident;
    launch.planned.grid = launch.most_blocks == 0 ? 0 : to_int32(resident);
    launch.most_splits =
        launch.most_blocks == 0 || !may_split ? 0 : to_int32(kSplitsPerResidentBlock * resident);
    launch.first_workspace_row = to_int32(workspace_rows_);
    const std::int64_t whole = merges_all_ ? launch.most_blocks : 0;
    if (launch.most_splits + whole == 0) continue;
    most_merges_ +=
        std::max(whole, std::min<std::int64_t>(launch.most_blocks, launch.most_splits / 2));
    merge_rows_ = std::max(merge_rows_,
                           is_fixed ? to_int32(limits_->queries) * group_ : rows_of_block(launch));
    workspace_rows_ += (launch.most_splits + whole) * rows_of_block(launch);
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
  grow(most_merges_, merges_);
  grow(1, counters_);
  for (std::size_t i = 0; i < launches_.size(); ++i) {
    Launch& launch = launches_[i];
    if (launch.planned.grid == 0) continue;
    grow(std::max<std::int64_t>(launch.most_blocks + launch.most_splits, launch.planned.grid),
         launch.tasks);
    launch.planned.tasks = launch.tasks.data();
    launch.planned.task_count = counters_.data()->tasks + i;
    launch.planned.claim = counters_.data()->claims + i;
  }
}

void DevicePlan::reserve(const AttendLimits& limits) {
  limits_ = limits;
  merges_all_ = limits.merges_all;
  if (evaluates_mask()) {
    classifier_.prepare(std::min<std::int64_t>(limits.queries, launches_[0].block_tokens));
  }
  const std::int64_t query_blocks = most_query_blocks(limits.queries, launches_[0]);
  tokens_ = token_slot_count_ = limits.sequences * limits.queries;
  shape_launches();
  reserve_arrays(limits.pages * query_blocks, limits.sequences * query_blocks);
  // New pages: those of the new tokens, and one that copy on write replaces.
  const auto sequences = static_cast<std::size_t>(limits.sequences);
  const auto fresh =
      static_cast<std::size_t>(ceil_div(limits.queries, options_.shape.page_size)) + 2;
  upload_.begin(Upload::bytes_of<PlanSequence>(sequences) +
                Upload::bytes_of<QueryBlock>(sequences * static_cast<std::size_t>(query_blocks)) +
                Upload::bytes_of<std::int32_t>(static_cast<std::size_t>(tokens_)) +
                Upload::bytes_of<PageChange>(sequences * fresh) +
                Upload::bytes_of<PageMove>(sequences));
}

// ---- On the device ----

PlanCandidates DevicePlan::send(PageLists& pages, cudaStream_t stream) {
  upload_.begin(Upload::bytes_of<PlanSequence>(sequences_.size()) +
                Upload::bytes_of<QueryBlock>(query_blocks_.size()) +
                Upload::bytes_of<std::int32_t>(q_positions_.size()) + pages.upload_bytes());
  const PlanCandidates candidates{
      .sequences = upload_.add(std::span<const PlanSequence>(sequences_)),
      .query_blocks = upload_.add(std::span<const QueryBlock>(query_blocks_)),
      .pages = nullptr,  // set once they have their room
      .q_positions =
          q_positions_.empty() ? nullptr : upload_.add(std::span<const std::int32_t>(q_positions_)),
      .classes = classes_.data(),
      .sequence_count = to_int32(std::ssize(sequences_)),
      .query_block_count = to_int32(std::ssize(query_blocks_)),
      .candidate_count = to_int32(candidates_),
      .page_size = options_.shape.page_size,
      .group = group_,
      .first_head = options_.first_head};
  pages.add_to(upload_);
  upload_.send(stream);
  return candidates;
}

void DevicePlan::classify(const PlanCandidates& candidates, cudaStream_t stream) {
  if (evaluates_mask()) return classifier_.classify(candidates, query_block_tokens_, stream);
  const ClassTable table = block_mask_ ? block_mask_->table() : ClassTable{};
  check(launch_look_up(candidates, table, stream), "planning: classes of pages");
}

void DevicePlan::list_visits(const PlanCandidates& candidates, cudaStream_t stream) {
  check(launch_list({.candidates = candidates,
                     .table = block_mask_ ? block_mask_->table() : ClassTable{},
                     .visits = visits_.data(),
                     .head_classes = head_classes_.data(),
                     .positions = positions_.data(),
                     .token_slots = token_slots_.data(),
                     .token_slot_count = to_int32(token_slot_count_),
                     .visits_of_query_block = visits_of_query_block_.data()},
                    stream),
        "planning: visits");
}

void DevicePlan::split(const PlanCandidates& candidates, cudaStream_t stream) {
  const int page_size = options_.shape.page_size;
  PlanCounters* const counters = counters_.data();
  bool is_first = true;
  for (std::size_t i = 0; i < launches_.size(); ++i) {
    const Launch& launch = launches_[i];
    if (launch.planned.grid == 0) continue;
    const int tile_keys = launch.shape.tile_keys;
    const int split_unit_visits = std::max(1, tile_keys / page_size);
    check(launch_split(
              {.candidates = candidates,
               .first_query_block = launch.first_query_block,
               .query_block_count = launch.query_blocks,
               .kv_heads_of_query_block = kv_heads_of_query_block(),
               .resident_blocks = launch.shape.resident_blocks,
               .multiprocessors = launch.shape.multiprocessors,
               .one_piece_tiles = launch.shape.one_piece_tiles,
               .split_unit_visits = split_unit_visits,
               .split_unit_tiles = to_int32(ceil_div(split_unit_visits * page_size, tile_keys)),
               .most_splits = launch.most_splits,
               .first_workspace_row = launch.first_workspace_row,
               .is_first = is_first,
               .merges_all = merges_all_,
               .visits_of_query_block = visits_of_query_block_.data(),
               .visits = visits_.data(),
               .order = order_.data() + launch.first_query_block,
               .tasks = launch.tasks.data(),
               .task_count = counters->tasks + i,
               .claim = counters->claims + i,
               .merges = merges_.data(),
               .merges_made = &counters->merges},
              stream),
          "planning: tasks");
    is_first = false;
  }
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
  std::size_t bytes = sum(upload_, classes_, visits_of_query_block_, order_, visits_, head_classes_,
                          positions_, token_slots_, merges_, counters_);
  for (const Launch& launch : launches_) bytes += launch.tasks.size_bytes();
  if (block_mask_) bytes += block_mask_->size_bytes();
  return static_cast<std::int64_t>(bytes);
}

}  // namespace kvmesh::cuda
