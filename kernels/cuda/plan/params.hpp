// The data that planning on the device works with. One text for the host, nvcc and NVRTC.
#pragma once

#include <cstdint>

#include "kernels/cuda/common/task.hpp"
#include "kernels/cuda/plan/piece_rule.hpp"
#include "kernels/mods/mod_buffers.hpp"
#include "kernels/page_visit.hpp"
#include "kernels/tile_class.hpp"
#include "kvmesh/page.hpp"

namespace kvmesh::cuda {

/// A change of the page lists: one entry to write. Entries of all lists are in one array.
struct PageChange {
  std::int64_t at;
  LocalPage page;
};
/// Entries [from, from + count) of a list that has outgrown its room.
struct ListMove {
  std::int64_t from;
  std::int64_t to;
  std::int64_t count;
};

/// One sequence of a step, or, after them all, a shared block: a sequence of its own that has the
/// pages of a prefix and the queries of several sequences. Those have their other pages left.
struct alignas(16) PlanSequence {
  std::int64_t first_page;   // first entry of its list
  std::int32_t pages;        // pages of this rank
  std::int32_t first_token;  // first of its queries; of a shared block its place in row_tokens
  std::int32_t queries;
  std::int32_t kv_len;            // over all ranks, with the appended tokens
  std::int32_t first_token_slot;  // first of its appended tokens
  std::int32_t appended;
  std::int32_t counts_sinks;  // this rank counts the sinks of its rows
};

/// Some query tokens of a sequence that read the same pages: for all kv heads, or for `kv_head`
/// where the mask depends on the head. A candidate is one (query block, page of the sequence).
struct alignas(16) QueryBlock {
  std::int32_t sequence;
  std::int32_t first_token;
  std::int32_t tokens;
  std::int32_t kv_head;  // 0 for all
  std::int32_t q_block;  // of an explicit block mask
  std::int32_t first_candidate;
  std::int32_t shared_block;  // query block that its rows are merged with; -1: none
  std::int32_t shared_token;  // its first of that block's tokens
};

/// The partials of a work block in the workspace: row r of split s is at row + s * rows + r.
struct BlockPartials {
  std::int32_t row;
  std::int32_t splits;
};

/// The tiles of a block mask: classes [batch][heads][q_blocks][kv_blocks]. Past kv_blocks all are
/// empty; a batch or heads of 1 stand for all.
struct ClassTable {
  const TileClass* classes;
  std::int32_t batch;
  std::int32_t heads;
  std::int32_t q_blocks;
  std::int32_t kv_blocks;
};

/// A step's sequences and query blocks, and the classes of the candidates.
struct PlanCandidates {
  const PlanSequence* sequences;
  const QueryBlock* query_blocks;
  const LocalPage* pages;
  const std::int32_t* q_positions;  // [tokens]; null: the newest of each sequence
  TileClass* classes;               // [candidates]
  std::int32_t sequence_count;      // without shared blocks
  std::int32_t query_block_count;
  std::int32_t candidate_count;
  std::int32_t page_size;
  std::int32_t group;       // query heads per kv head
  std::int32_t first_head;  // number of this rank's query head 0 in the model
};

/// For the kernel that evaluates the mask.
struct ClassifyParams {
  PlanCandidates candidates;
  ModBuffers mods;
};

/// The outputs: visits, those of a query block from its first candidate's index on, and the arrays
/// computed beside them.
struct ListParams {
  PlanCandidates candidates;
  ClassTable table;
  PageVisit* visits;        // [candidates]
  TileClass* head_classes;  // [candidates][group], of mixed pages
  std::int32_t* positions;  // [tokens]
  TokenSlot* token_slots;   // [token slots]; unused ones are invalid
  std::int32_t token_slot_count;
  std::int32_t* row_tokens;  // [tokens + shared_token_count]; null: the step has no shared rows
  const std::int32_t* shared_tokens;  // [shared_token_count], go to row_tokens after the tokens
  std::int32_t shared_token_count;
  std::int32_t token_count;
  std::int32_t* visits_of_query_block;  // [query_blocks]
  std::int32_t* query_tokens;           // is set to token_count
};

/// How one launch splits its work blocks into tasks for thread blocks. A work block is a query
/// block for one kv head: number b is query block first_query_block + b / kv_heads_of_query_block,
/// kv head b % kv_heads_of_query_block (or the query block's). A split unit is some whole pages
/// that stay together.
struct SplitParams {
  PlanCandidates candidates;
  std::int32_t first_query_block;
  std::int32_t query_block_count;
  std::int32_t kv_heads_of_query_block;
  std::int32_t resident_blocks;  // thread blocks that have pieces at once
  std::int32_t grid;             // thread blocks, as many as all multiprocessors can run at once
  std::int32_t multiprocessors;
  PieceRule rule;
  std::int32_t split_unit_visits;
  std::int32_t split_unit_tiles;
  std::int32_t is_fixed;       // each split unit is a piece
  std::int32_t whole_queries;  // blocks of sequences of this many queries or more stay whole
  std::int32_t most_splits;    // room for splits of blocks
  std::int32_t first_workspace_row;
  std::int32_t is_first;                      // of the step's launches, which start in this order
  std::int32_t merges_all;                    // blocks that are not split, too
  const std::int32_t* visits_of_query_block;  // [query_blocks]
  const PageVisit* visits;
  std::int32_t* order;  // [query_blocks of the launch]: in the order in which they start
  DeviceTask* tasks;    // [blocks + most_splits], or resident_blocks if that is more
  TaskCounts* task_counts;
  std::int32_t* tasks_made;   // number of tasks of the launches up to this one
  std::uint32_t* claim;       // set to 0; the thread blocks of the launch count with it
  DeviceMerge* merges;        // of all launches
  std::int32_t* merges_made;  // number of merges
  BlockPartials* shared;      // [shared query blocks][kv heads]; null: the step shares nothing
};

}  // namespace kvmesh::cuda
