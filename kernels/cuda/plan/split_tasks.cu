// Planning on the device: from the visits of each query block to the tasks that thread blocks claim
// (split.hpp).
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "core/cuda/device/warp.cuh"
#include "core/cuda/load_kernels.hpp"
#include "kernels/cuda/plan/kernels.hpp"
#include "kernels/cuda/plan/split.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kSplitThreads = 512;
constexpr int kSplitWarps = kSplitThreads / 32;
constexpr int kBuckets = 2 * kSplitThreads;  // of query blocks, by length

/// Prefix sums along the line of blocks.
struct Sums {
  int tasks;
  int merges;
  int rows;  // of workspace
};
struct Larger {
  __device__ int operator()(int a, int b) const { return max(a, b); }
};
struct AddSums {
  __host__ __device__ Sums operator()(const Sums& a, const Sums& b) const {
    return {a.tasks + b.tasks, a.merges + b.merges, a.rows + b.rows};
  }
};

/// One thread block splits a launch: each of its threads takes one work block at a time.
class Splitter {
 public:
  using Scan = cub::BlockScan<Sums, kSplitThreads>;
  using Tiles = cub::BlockScan<long long, kSplitThreads>;
  using Count = cub::BlockScan<int, kSplitThreads>;
  using Max = cub::BlockReduce<int, kSplitThreads>;
  /// The memory that its threads share.
  struct Shared {
    union {
      typename Scan::TempStorage scan;
      typename Tiles::TempStorage tiles;
      typename Count::TempStorage count;
      typename Max::TempStorage max;
    };
    int longest;            // visits of the longest query block
    int buckets[kBuckets];  // query blocks that are longer than a bucket's; bucket 0 has the
                            // longest
  };

  __device__ Splitter(const SplitParams& params, Shared& shared)
      : p_(params),
        shared_(shared),
        blocks_(params.query_block_count * params.kv_heads_of_query_block),
        first_merge_(params.is_first ? 0 : *params.merges_made) {}

  __device__ void run() {
    count_buckets();
    sort_query_blocks();
    const Line line(total_tiles(),
                    ceil_div(shared_.longest, p_.split_unit_visits) * p_.split_unit_tiles,
                    p_.resident_blocks, p_.multiprocessors, p_.rule, p_.is_fixed != 0);
    Begun all{};
    for (int first = 0; first < blocks_; first += kSplitThreads) {
      split_block(line, first + static_cast<int>(threadIdx.x), all);
    }
    __syncthreads();  // all have read the merges made before, and written theirs
    if (p_.shared != nullptr) find_shared_rows(all.sums.merges);
    if (threadIdx.x == 0) {
      count_tasks(all.sums.tasks);
      *p_.claim = 0;
      *p_.merges_made = first_merge_ + all.sums.merges;
    }
  }

 private:
  /// Each task of the launches before counts as a multiprocessor, which it is where these are of
  /// many rows. Where they share some, early_blocks is too low: a few more pieces are claimed.
  __device__ void count_tasks(int tasks) const {
    const int before = p_.is_first ? 0 : *p_.tasks_made;
    const int blocks = p_.grid / p_.multiprocessors;  // of each multiprocessor
    *p_.task_counts = {.tasks = tasks,
                       .early_blocks = max(0, p_.multiprocessors - before) * blocks};
    *p_.tasks_made = before + tasks;
  }

  __device__ int visits(int query_block) const { return p_.visits_of_query_block[query_block]; }
  __device__ long long split_units(int query_block) const {
    return ceil_div(visits(query_block), p_.split_unit_visits);
  }

  /// Sums up to a place on the line.
  struct Begun {
    long long tiles = 0;
    int splits = 0;  // of blocks that are split
    Sums sums{};
  };

  /// Each returns the sum over the threads before, and adds the sum over all to `all`.
  __device__ long long scan(long long own, long long& all) {
    long long before, step;
    Tiles(shared_.tiles).ExclusiveSum(own, before, step);
    __syncthreads();  // the scratch is free
    before += all;
    all += step;
    return before;
  }
  __device__ int scan(int own, int& all) {
    int before, step;
    Count(shared_.count).ExclusiveSum(own, before, step);
    __syncthreads();
    before += all;
    all += step;
    return before;
  }
  __device__ Sums scan(const Sums& own, Sums& all) {
    Sums before, step;
    Scan(shared_.scan).ExclusiveScan(own, before, Sums{}, AddSums(), step);
    __syncthreads();
    before = AddSums()(all, before);
    all = AddSums()(all, step);
    return before;
  }

  __device__ long long total_tiles() {
    long long own = 0, all = 0;
    for (int l = static_cast<int>(threadIdx.x); l < p_.query_block_count; l += kSplitThreads) {
      own +=
          split_units(p_.first_query_block + l) * p_.split_unit_tiles * p_.kv_heads_of_query_block;
    }
    scan(own, all);
    return all;
  }

  // ---- Query blocks in order: sequence after sequence, long ones first ----
  //
  // The longest first would end most evenly. But query blocks of one sequence read the same pages,
  // and those that run at the same time find them in the L2 cache: prefill of 8 x 2048 tokens is 5
  // % faster, 4 x 512 on 32,768 tokens 6 % (H200).

  /// Returns the bucket of a query block: query blocks of nearly equal length share one. Several
  /// query blocks of a sequence all count by the sequence's pages, which the last one usually sees,
  /// so that they stay together.
  __device__ int bucket_of(int query_block) const {
    const QueryBlock& block = p_.candidates.query_blocks[query_block];
    const PlanSequence& sequence = p_.candidates.sequences[block.sequence];
    const bool is_only = block.tokens == sequence.queries;
    const int length = is_only ? visits(query_block) : min(sequence.pages, shared_.longest);
    if (length == 0) return kBuckets - 1;
    return kBuckets - 1 -
           static_cast<int>(ceil_div(std::int64_t{length} * (kBuckets - 1), shared_.longest));
  }

  __device__ void count_buckets() {
    int longest = 0;
    for (int l = static_cast<int>(threadIdx.x); l < p_.query_block_count; l += kSplitThreads) {
      longest = max(longest, visits(p_.first_query_block + l));
    }
    longest = Max(shared_.max).Reduce(longest, Larger());
    if (threadIdx.x == 0) shared_.longest = longest;
    int* const mine = shared_.buckets + 2 * threadIdx.x;
    mine[0] = mine[1] = 0;
    __syncthreads();
    for (int l = static_cast<int>(threadIdx.x); l < p_.query_block_count; l += kSplitThreads) {
      atomicAdd(&shared_.buckets[bucket_of(p_.first_query_block + l)], 1);
    }
    __syncthreads();
    int counts[2] = {mine[0], mine[1]};
    Count(shared_.count).ExclusiveSum(counts, counts);
    mine[0] = counts[0];
    mine[1] = counts[1];
    __syncthreads();
  }

  /// Within a bucket from the last query block to the first, since with a causal mask those of a
  /// sequence get longer. One warp after another places its query blocks: the splits depend on the
  /// order.
  __device__ void sort_query_blocks() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    for (int first = 0; first < p_.query_block_count; first += kSplitThreads) {
      const int l = first + static_cast<int>(threadIdx.x);
      const bool is_there = l < p_.query_block_count;
      const int query_block = p_.first_query_block + p_.query_block_count - 1 - l;
      const int bucket = is_there ? bucket_of(query_block) : kBuckets;
      for (int turn = 0; turn < kSplitWarps && first + turn * 32 < p_.query_block_count; ++turn) {
        if (warp == turn) place_query_blocks(query_block, bucket, is_there);
        __syncthreads();
      }
    }
  }

  __device__ void place_query_blocks(int query_block, int bucket, bool is_there) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const unsigned peers = __match_any_sync(kAllLanes, bucket);
    const int before = __popc(peers & ((1u << lane) - 1));
    const int first = is_there ? shared_.buckets[bucket] : 0;
    __syncwarp();
    if (!is_there) return;
    p_.order[first + before] = query_block;
    if (before == 0) shared_.buckets[bucket] = first + __popc(peers);
  }

  // ---- Blocks, in the order of their query blocks ----

  __device__ int query_block_at(int block) const {
    return p_.order[block / p_.kv_heads_of_query_block];
  }

  __device__ HeadBlocks head_blocks(int block, long long tiles, long long begin) const {
    const int head = block % p_.kv_heads_of_query_block;
    return {.rank = block - head,
            .begin = begin - head * tiles,
            .heads = p_.kv_heads_of_query_block,
            .split_units = tiles / p_.split_unit_tiles,
            .split_unit_tiles = p_.split_unit_tiles};
  }

  __device__ void split_block(const Line& line, int block, Begun& all) {
    const bool is_there = block < blocks_;
    const int query_block = is_there ? query_block_at(block) : 0;
    const int head = block % p_.kv_heads_of_query_block;
    const long long tiles = is_there ? split_units(query_block) * p_.split_unit_tiles : 0;
    const HeadBlocks blocks = head_blocks(block, tiles, scan(tiles, all.tiles));
    int splits = 1;
    if (is_there && !is_kept_whole(query_block) && !line.stays_whole(blocks, head)) {
      splits = static_cast<int>(Cuts(line, blocks).pieces());
    }
    // No more than there is room for: from the first query block that has none on, all stay whole.
    const int added = splits > 1 ? splits : 0;
    const int heads_from_this = p_.kv_heads_of_query_block - head;
    if (scan(added, all.splits) + heads_from_this * added > p_.most_splits) splits = 1;
    const bool is_merged = is_there && (splits > 1 || goes_through_workspace(query_block));
    const Sums own = is_there ? sums_of(query_block, splits, is_merged) : Sums{};
    const Sums before = scan(own, all.sums);
    if (!is_there) return;
    const int row = is_merged ? first_row(before) : -1;
    if (splits > 1) {
      add_pieces(query_block, head, Cuts(line, blocks), splits, before.tasks, row);
    } else {
      p_.tasks[before.tasks] = task_of(query_block, head, 0, visits(query_block), row);
    }
    if (is_shared(query_block)) {
      p_.shared[query_block * p_.kv_heads_of_query_block + head] = {first_row(before), splits};
    } else if (is_merged) {
      add_merge(query_block, head, splits, before);
    }
  }

  /// By the numbers of its own sequence, in fixed-split mode.
  __device__ bool is_kept_whole(int query_block) const {
    const QueryBlock& block = p_.candidates.query_blocks[query_block];
    return p_.candidates.sequences[block.sequence].queries >= p_.whole_queries;
  }
  __device__ bool is_shared(int query_block) const {
    return p_.candidates.query_blocks[query_block].sequence >= p_.candidates.sequence_count;
  }
  /// Also if it is not split.
  __device__ bool goes_through_workspace(int query_block) const {
    return p_.merges_all != 0 || is_shared(query_block) ||
           p_.candidates.query_blocks[query_block].shared_block >= 0;
  }

  __device__ Sums sums_of(int query_block, int splits, bool is_merged) const {
    if (!is_merged) return {1, 0, 0};
    return {splits, is_shared(query_block) ? 0 : 1, splits * rows_of(query_block)};
  }
  __device__ int rows_of(int query_block) const {
    return p_.candidates.query_blocks[query_block].tokens * p_.candidates.group;
  }
  /// Rows of the workspace.
  __device__ int first_row(const Sums& before) const {
    return p_.first_workspace_row + before.rows;
  }

  /// Adds the pieces of a head's block among those of the query block's other heads. `tasks` come
  /// before its own if the heads come one after another; its rows of the workspace do.
  __device__ void add_pieces(int query_block, int head, const Cuts& cuts, int splits, int tasks,
                             int row) const {
    const int first = tasks - (head - static_cast<int>(cuts.first_head())) * splits;
    int piece = 0, begin = 0;
    for (int s = 0; s < cuts.sections(); ++s) {
      const Cuts::Section section = cuts.section(s);
      for (int part = 0; part < section.pieces; ++part, ++piece) {
        const auto units = begin_of_part(section.end - section.begin, section.pieces, part + 1);
        const int end = min(static_cast<int>(section.begin + units) * p_.split_unit_visits,
                            visits(query_block));
        p_.tasks[first + cuts.place_of_piece(head, piece)] =
            task_of(query_block, head, begin, end, row + piece * rows_of(query_block));
        begin = end;
      }
    }
  }

  __device__ DeviceTask task_of(int query_block, int head, int begin, int end,
                                int workspace_row) const {
    const QueryBlock& l = p_.candidates.query_blocks[query_block];
    const PlanSequence& sequence = p_.candidates.sequences[l.sequence];
    int keys = (end - begin) * p_.candidates.page_size;
    if (end > begin) {  // the sequence may end inside the last page
      const int last = p_.visits[l.first_candidate + end - 1].logical;
      keys -= max(0, (last + 1) * p_.candidates.page_size - sequence.kv_len);
    }
    return {l.sequence,
            l.kv_head + head,
            l.first_token,
            l.tokens * p_.candidates.group,
            l.first_candidate + begin,
            keys,
            workspace_row,
            sequence.counts_sinks};
  }

  __device__ void add_merge(int query_block, int head, int splits, const Sums& before) const {
    const QueryBlock& l = p_.candidates.query_blocks[query_block];
    const DeviceMerge merge{
        .kv_head = l.kv_head + head,
        .first_token = l.first_token,
        .rows = rows_of(query_block),
        .workspace_row = first_row(before),
        .splits = splits,
        .counts_sinks = p_.candidates.sequences[l.sequence].counts_sinks,
        .shared_row = l.shared_block * p_.kv_heads_of_query_block + head,
        .shared_rows = static_cast<std::int16_t>(l.shared_token),
        .shared_splits = static_cast<std::int16_t>(l.shared_block >= 0 ? kUnknown : 0)};
    p_.merges[first_merge_ + before.merges] = merge;
  }

  /// The splits of a shared block may be known later than those of the blocks that share it: until
  /// then a merge has the block's place, and its own token there.
  static constexpr int kUnknown = -1;

  __device__ void find_shared_rows(int merges) const {
    for (int m = static_cast<int>(threadIdx.x); m < merges; m += kSplitThreads) {
      DeviceMerge& merge = p_.merges[first_merge_ + m];
      if (merge.shared_splits != kUnknown) continue;
      const BlockPartials shared = p_.shared[merge.shared_row];
      const int query_block = merge.shared_row / p_.kv_heads_of_query_block;
      merge.shared_row = shared.row + merge.shared_rows * p_.candidates.group;
      merge.shared_rows = static_cast<std::int16_t>(rows_of(query_block));
      merge.shared_splits = static_cast<std::int16_t>(shared.splits);
    }
  }

  const SplitParams& p_;
  Shared& shared_;
  const int blocks_;
  const int first_merge_;
};

__global__ void __launch_bounds__(kSplitThreads, 1)
    split_tasks(const __grid_constant__ SplitParams params) {
  __shared__ Splitter::Shared shared;
  Splitter(params, shared).run();
}

}  // namespace

cudaError_t load_split_kernel() { return load_kernels(split_tasks); }

cudaError_t launch_split(const SplitParams& params, cudaStream_t stream) {
  split_tasks<<<1, kSplitThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace kvmesh::cuda
