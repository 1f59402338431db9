// A step's plan, made on the device: which thread block reads which pages for which query rows.
//
//   host                                 device
//   sequences, query blocks       ->     [classes] -> visits -> tasks     (kernels.cu)
//   what changed of the pages     ->     page lists
//
// The host's part grows with the sequences and their queries, not with their pages.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/cuda/device_array.hpp"
#include "kernels/attend_steps.hpp"
#include "kernels/cuda/common/task.hpp"
#include "kernels/cuda/common/upload.hpp"
#include "kernels/cuda/plan/block_classes.hpp"
#include "kernels/cuda/plan/classifier.hpp"
#include "kernels/cuda/plan/page_lists.hpp"
#include "kernels/cuda/plan/params.hpp"
#include "kernels/cuda/plan/piece_rule.hpp"
#include "kernels/sequence_size.hpp"
#include "kernels/shared_blocks.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

/// A step to be planned.
struct StepView {
  std::span<const AttendSequence> sequences;  ///< their pages are those of the page lists
  /// Logical positions of all queries; empty: the newest of each sequence.
  std::span<const std::int64_t> q_positions{};
  /// Every block of rows goes through the workspace and is merged, also one that is not split: for
  /// rows that the merge sends to other ranks.
  bool merges_all = false;
  /// The same step with the prefixes that its sequences share, found in their pages on the host.
  AttendSteps shared{};
};

/// Upper bounds of all plans of a captured graph.
struct AttendLimits {
  std::int64_t sequences = 0;
  /// Query tokens per sequence; also the limit for appended tokens. queries * group <= kShortRows.
  std::int64_t queries = 1;
  /// Local pages of all sequences together. More pages make the graph invalid: see `generation`.
  std::int64_t pages = 0;
  /// Whether some step of the plan may set StepView::merges_all.
  bool merges_all = false;
  /// Whether steps may share prefixes; otherwise StepView::shared is ignored.
  bool shares_prefixes = false;
};
/// Most rows of a thread block for few rows: decode, speculation.
inline constexpr std::int64_t kShortRows = 64;

/// The launches of an attend, and their places in arrays.
enum LaunchKind : std::uint8_t {
  kShortLaunch,   ///< decode, speculation
  kLongLaunch,    ///< long chunks
  kSharedLaunch,  ///< rows of several sequences that share a prefix
};
inline constexpr int kLaunches = 3;
/// The order in which they start: thread blocks for few rows are small, and fill what the others
/// leave.
inline constexpr LaunchKind kLaunchOrder[kLaunches] = {kLongLaunch, kSharedLaunch, kShortLaunch};

struct LaunchShape {
  int rows = 16;            ///< rows per thread block: a row class
  int resident_blocks = 1;  ///< thread blocks that run at once on the device
  int multiprocessors = 1;
  int tile_keys = 64;  ///< keys per step of a thread block
  PieceRule rule{};
};

/// The device's counts of a plan.
struct PlanCounters {
  TaskCounts launches[kLaunches];
  std::uint32_t claims[kLaunches];
  std::int32_t tasks;  // of the launches so far
  std::int32_t merges;
  std::int32_t query_tokens;
};

/// The arrays that the kernels read. Their addresses are constant while a plan has limits.
struct PlannedLaunch {
  const DeviceTask* tasks = nullptr;
  const TaskCounts* task_counts = nullptr;
  std::uint32_t* claim = nullptr;
  int grid = 0;  ///< thread blocks; 0: nothing to launch
};

class DevicePlan {
 public:
  struct Options {
    AttentionShape shape;
    MaskMod mask;
    int first_head = 0;
    std::array<LaunchShape, kLaunches> launches;
    /// Keys of a piece, a multiple of the page size; 0: pieces follow from all that a launch reads.
    std::int64_t fixed_split_tokens = 0;
    bool may_share = false;  ///< its mods allow rows of several sequences in a task
    /// Sequences with at most this many tokens beside what they share are computed in the launch of
    /// shared rows, all together: it costs less than another launch.
    std::int64_t most_own_tokens = 0;
    /// A token that one sequence reads takes a multiprocessor as long as a shared token takes it
    /// for this many rows.
    int rows_of_own_token = 1;
  };
  /// REQUIRES: `mods` stay where they are.
  DevicePlan(KernelStore& kernels, const Options& options, const DeviceMods& mods,
             std::optional<BlockClasses> block_mask);

  /// Allocates all memory and compiles all kernels that plans within the limits need. From then on
  /// launches have grids of one size. REQUIRES: called once, before the first plan.
  void reserve(const AttendLimits& limits);

  /// Checks that `plan` can plan sequences of these sizes if this rank has all of their pages.
  /// @throws InvalidArgument: too much for one plan, or past the limits.
  void check_plan(std::span<const SequenceSize> sequences) const;

  /// The parts of planning a step, in this order; plan_together calls them. `prepare` makes the
  /// lists that are sent, and allocates nothing within the limits. REQUIRES: sizes that have passed
  /// `check_plan`.
  void prepare(const PageLists& pages, const StepView& step);
  std::size_t upload_bytes() const;
  void add_to(Upload& upload);
  /// Starts the kernels that plan. REQUIRES: the upload was sent, and `pages` are read on `stream`.
  void start(const LocalPage* pages, cudaStream_t stream);
  /// The most bytes of an upload within the limits, with the changes of page lists, unless many
  /// pages are new at once (a fork's).
  std::size_t most_upload_bytes() const;

  /// Changes when an array has grown: graphs captured before are then invalid.
  std::uint64_t generation() const { return generation_; }

  /// Rows of the tensors: those of the step or, with limits, of the limits.
  std::int64_t tokens() const { return limits_ ? limits_->sequences * limits_->queries : tokens_; }
  std::int64_t token_slot_count() const { return token_slot_count_; }
  const PlannedLaunch& launch(int i) const {
    return launches_[static_cast<std::size_t>(i)].planned;
  }
  /// The most queries of a sequence that may share a prefix; 0: none does.
  std::int64_t most_shared_queries() const;
  /// Bytes of the uploaded lists on the host.
  std::int64_t host_bytes() const {
    return static_cast<std::int64_t>(sequences_.capacity() * sizeof(PlanSequence) +
                                     query_blocks_.capacity() * sizeof(QueryBlock) +
                                     q_positions_.capacity() * sizeof(std::int32_t) +
                                     shared_tokens_.capacity() * sizeof(std::int32_t));
  }
  const PageVisit* visits() const { return visits_.data(); }
  const TileClass* head_classes() const { return head_classes_.data(); }
  const std::int32_t* positions() const { return positions_.data(); }
  const std::int32_t* row_tokens() const { return row_tokens_.data(); }
  const TokenSlot* token_slots() const { return token_slots_.data(); }
  const DeviceMerge* merges() const { return merges_.data(); }
  const std::int32_t* merges_made() const { return &counters_.data()->merges; }
  /// The step's number of query tokens.
  const std::int32_t* query_tokens() const { return &counters_.data()->query_tokens; }
  std::int64_t most_merges() const { return most_merges_; }
  int merge_rows() const { return merge_rows_; }  ///< rows of the largest merge
  std::int64_t workspace_rows() const { return workspace_rows_; }

  /// REQUIRES: the device has planned.
  TileCounts tiles() const;
  std::int64_t size_bytes() const;

 private:
  struct Launch {
    LaunchShape shape;
    std::int32_t block_tokens = 1;  // most tokens per query block
    std::int32_t first_query_block = 0;
    std::int32_t query_blocks = 0;
    std::int64_t most_blocks = 0;  // work blocks
    std::int32_t most_splits = 0;
    std::int32_t first_workspace_row = 0;
    PlannedLaunch planned;
    DeviceArray<DeviceTask> tasks;
  };

  int kv_heads_of_query_block() const { return per_head_ ? 1 : options_.shape.kv_heads; }
  int rows_of_block(const Launch& launch) const { return launch.block_tokens * group_; }
  bool evaluates_mask() const { return !block_mask_ && !options_.mask.is_identity(); }
  bool is_short(std::int64_t queries) const;
  bool shares() const { return options_.may_share && (!limits_ || limits_->shares_prefixes); }
  std::int64_t most_query_blocks(std::int64_t queries, const Launch& launch) const;

  void add_sequences(const PageLists& pages, const StepView& step);
  void share_prefixes(const PageLists& pages, const StepView& step);
  int resident_shared_blocks() const;
  void add_query_blocks(LaunchKind kind);
  void add_query_blocks_of(std::int32_t sequence, const Launch& launch);
  void add_shared_query_blocks();
  LaunchKind launch_of(std::int32_t sequence) const;
  std::int64_t shared_blocks() const;
  std::int64_t most_own_blocks(LaunchKind kind) const;
  bool is_fixed_split() const { return options_.fixed_split_tokens > 0; }
  std::int64_t visits_of_piece() const;
  std::int64_t whole_queries(LaunchKind kind) const;
  /// Pieces of split blocks, and the rows of all pieces.
  struct Splits {
    std::int64_t pieces = 0;
    std::int64_t rows = 0;
  };
  Splits most_fixed_splits(LaunchKind kind) const;
  Splits most_splits(LaunchKind kind) const;
  void shape_launches();
  void reserve_arrays(std::int64_t candidates, std::int64_t query_blocks);
  template <class... Arrays>
  void grow(std::int64_t count, Arrays&... arrays);
  void classify(cudaStream_t stream);
  void list_visits(cudaStream_t stream);
  void split(cudaStream_t stream);
  void split(LaunchKind kind, bool is_first, cudaStream_t stream);

  Options options_;
  int group_;  // query heads per kv head
  std::optional<BlockClasses> block_mask_;
  bool per_head_;
  Classifier classifier_;
  std::optional<AttendLimits> limits_;

  // The step as it is sent. Kept for its memory.
  std::vector<PlanSequence> sequences_;
  std::vector<QueryBlock> query_blocks_;
  std::vector<std::int32_t> q_positions_;
  SharedBlocks shared_;
  std::vector<std::int32_t> shared_tokens_;  // of shared_
  PlanCandidates sent_{};
  const std::int32_t* shared_tokens_sent_ = nullptr;
  std::int64_t members_ = 0;        // sequences that leave pages to a shared block
  bool is_one_launch_ = false;      // their other pages are read in the launch of shared rows
  int resident_shared_blocks_ = 1;  // thread blocks that have pieces of shared rows at once
  std::int64_t candidates_ = 0;
  std::int32_t query_block_tokens_ = 0;  // of the longest query block
  bool merges_all_ = false;
  std::int64_t tokens_ = 0;
  std::int64_t token_slot_count_ = 0;
  std::uint64_t generation_ = 0;

  std::array<Launch, kLaunches> launches_;
  DeviceArray<TileClass> classes_;
  DeviceArray<std::int32_t> visits_of_query_block_, order_;
  DeviceArray<PageVisit> visits_;
  DeviceArray<TileClass> head_classes_;
  DeviceArray<std::int32_t> positions_, row_tokens_;
  DeviceArray<BlockPartials> shared_partials_;
  DeviceArray<TokenSlot> token_slots_;
  DeviceArray<DeviceMerge> merges_;
  DeviceArray<PlanCounters> counters_;
  std::int64_t most_merges_ = 0;
  int merge_rows_ = 0;
  std::int64_t workspace_rows_ = 0;
};

/// Plans of one step over the same sequences, on a stream: applies the changes of `pages`, and
/// sends what all plans need in one copy. Waits for the last copy of `upload`. Within limits it
/// allocates only room for the page lists, which doubles, and for many new pages at once.
void plan_together(std::span<DevicePlan* const> plans, PageLists& pages, const StepView& step,
                   Upload& upload, cudaStream_t stream);

}  // namespace kvmesh::cuda
