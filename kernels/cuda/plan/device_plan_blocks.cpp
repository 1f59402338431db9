// The host's part of a plan on the device: the sequences of a step, and their query blocks.
#include <algorithm>
#include <limits>

#include "kernels/cuda/plan/device_plan.hpp"
#include "kernels/cuda/plan/split.hpp"

namespace kvmesh::cuda {
namespace {

std::int32_t to_int32(std::int64_t value) { return static_cast<std::int32_t>(value); }

}  // namespace

void DevicePlan::add_sequences(const PageLists& pages, const StepView& step) {
  sequences_.clear();
  q_positions_.assign(step.q_positions.begin(), step.q_positions.end());
  std::int32_t token = 0, token_slot = 0;
  for (const AttendSequence& sequence : step.sequences) {
    sequences_.push_back({.first_page = pages.first_page(sequence.list),
                          .pages = to_int32(pages.size(sequence.list)),
                          .first_token = token,
                          .queries = to_int32(sequence.queries),
                          .kv_len = to_int32(sequence.kv_len),
                          .first_token_slot = token_slot,
                          .appended = to_int32(sequence.appended),
                          .counts_sinks = sequence.counts_sinks});
    token += sequences_.back().queries;
    token_slot += sequences_.back().appended;
  }
  tokens_ = token;
  if (!limits_) token_slot_count_ = token_slot;
}

// ---- Shared prefixes ----

/// Two sequences at least have room in a block; and each is in the launch of short rows.
std::int64_t DevicePlan::most_shared_queries() const {
  if (!shares()) return 0;
  return std::min(launches_[kShortLaunch].shape.rows / group_,
                  launches_[kSharedLaunch].block_tokens / 2);
}

/// Makes a sequence of each shared block, and takes its pages from those that leave them to it.
void DevicePlan::share_prefixes(const PageLists& pages, const StepView& step) {
  shared_.clear();
  shared_tokens_.clear();
  members_ = 0;
  if (!shares()) return;
  shared_.set(step.shared, options_.mask.graph(), launches_[kSharedLaunch].block_tokens);
  std::int64_t own_pages = 0;
  for (std::size_t s = 0; s < shared_.parts.size(); ++s) {
    const SharedPart& part = shared_.parts[s];
    if (part.block < 0) continue;
    sequences_[s].first_page += part.pages;
    sequences_[s].pages -= to_int32(part.pages);
    own_pages += sequences_[s].pages;
    ++members_;
  }
  is_one_launch_ = own_pages * options_.shape.page_size <= options_.most_own_tokens;
  for (const SharedToken& token : shared_.tokens) shared_tokens_.push_back(to_int32(token.token));
  for (const SharedBlock& block : shared_.blocks) {
    const AttendSequence& one = step.sequences[static_cast<std::size_t>(block.sequence)];
    sequences_.push_back({.first_page = pages.first_page(one.list),
                          .pages = to_int32(block.pages),
                          .first_token = to_int32(tokens_ + block.token_begin),
                          .queries = to_int32(block.tokens()),
                          .kv_len = std::numeric_limits<std::int32_t>::max(),
                          .first_token_slot = 0,
                          .appended = 0,
                          .counts_sinks = 0});
  }
  resident_shared_blocks_ = resident_shared_blocks();
}

/// Returns how many thread blocks have pieces of shared rows at once: this launch's share of the
/// work of all. The multiprocessors that they leave run the launch of short rows meanwhile, which
/// waits for memory most of the time while this one computes.
int DevicePlan::resident_shared_blocks() const {
  const LaunchShape& shape = launches_[kSharedLaunch].shape;
  std::int64_t shared = 0, own = 0;
  for (const SharedBlock& block : shared_.blocks) shared += block.pages * shape.rows;
  const auto sequences = to_int32(std::ssize(sequences_) - std::ssize(shared_.blocks));
  for (std::int32_t s = 0; s < sequences; ++s) {
    const std::int64_t pages = sequences_[static_cast<std::size_t>(s)].pages;
    if (launch_of(s) == kSharedLaunch) {
      shared += pages * shape.rows;
    } else {
      own += pages * options_.rows_of_own_token;
    }
  }
  if (own == 0) return shape.resident_blocks;
  return to_int32(std::max<std::int64_t>(1, shape.resident_blocks * shared / (shared + own)));
}

void DevicePlan::add_shared_query_blocks() {
  const std::size_t first = sequences_.size() - shared_.blocks.size();
  for (std::size_t s = first; s < sequences_.size(); ++s) {
    query_blocks_.push_back({.sequence = to_int32(static_cast<std::int64_t>(s)),
                             .first_token = sequences_[s].first_token,
                             .tokens = sequences_[s].queries,
                             .kv_head = 0,
                             .q_block = 0,
                             .first_candidate = to_int32(candidates_),
                             .shared_block = -1,
                             .shared_token = 0});
    candidates_ += sequences_[s].pages;
  }
}

// ---- Query blocks ----

bool DevicePlan::is_short(std::int64_t queries) const {
  return queries * group_ <= launches_[kShortLaunch].shape.rows;
}

/// Returns the most query blocks of a sequence: no query block crosses a q block, and each kv head
/// may have its own.
std::int64_t DevicePlan::most_query_blocks(std::int64_t queries, const Launch& launch) const {
  const std::int64_t heads = per_head_ ? options_.shape.kv_heads : 1;
  if (queries <= launch.block_tokens && !block_mask_) return heads;
  const std::int64_t blocks = ceil_div(queries, launch.block_tokens);
  return heads * (block_mask_ ? blocks + ceil_div(queries, block_mask_->q_block()) : blocks);
}

/// The launch that reads a sequence's own pages.
LaunchKind DevicePlan::launch_of(std::int32_t s) const {
  const auto at = static_cast<std::size_t>(s);
  if (is_one_launch_ && shared_.part(at).block >= 0) return kSharedLaunch;
  return is_short(sequences_[at].queries) ? kShortLaunch : kLongLaunch;
}

void DevicePlan::add_query_blocks(LaunchKind kind) {
  Launch& launch = launches_[kind];
  const auto sequences = to_int32(std::ssize(sequences_) - std::ssize(shared_.blocks));
  launch.first_query_block = to_int32(std::ssize(query_blocks_));
  if (kind == kSharedLaunch) add_shared_query_blocks();
  for (std::int32_t s = 0; s < sequences; ++s) {
    if (launch_of(s) == kind) add_query_blocks_of(s, launch);
  }
  launch.query_blocks = to_int32(std::ssize(query_blocks_)) - launch.first_query_block;
}

void DevicePlan::add_query_blocks_of(std::int32_t s, const Launch& launch) {
  const PlanSequence& sequence = sequences_[static_cast<std::size_t>(s)];
  const SharedPart part = shared_.part(static_cast<std::size_t>(s));
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
                                      .shared_block = part.block,
                                      .shared_token = part.token + q};
      candidates_ += sequence.pages;
    }
    query_block_tokens_ = std::max(query_block_tokens_, end - q);
    q = end;
  }
}

}  // namespace kvmesh::cuda
