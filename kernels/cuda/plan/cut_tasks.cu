// Planning on the device: from the visits of each list to tasks for thread blocks (cut.hpp).
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "core/cuda/load_kernels.hpp"
#include "kernels/cuda/plan/cut.hpp"
#include "kernels/cuda/plan/kernels.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kCutThreads = 512;
constexpr int kBuckets = 2 * kCutThreads;  // of lists, by length
// Whole blocks, which the device hands out as slots fall free, even out what makes one SM slower
// than another, and need no merge: worth a little more than their longest row of work says (H200,
// 512 equal blocks on 264 slots: 4 % faster than equal shares).
constexpr double kWholeBlocksGain = 1.05;

/// Sums that go along the line of blocks.
struct Line {
  long long tiles;  // cost of the blocks before
  int tasks;
  int merges;
  int rows;  // of workspace
};
struct Larger {
  __device__ int operator()(int a, int b) const { return max(a, b); }
};
struct AddLines {
  __host__ __device__ Line operator()(const Line& a, const Line& b) const {
    return {a.tiles + b.tiles, a.tasks + b.tasks, a.merges + b.merges, a.rows + b.rows};
  }
};

/// One thread block cuts a launch: a block of work for each of its threads at a time.
class Cutter {
 public:
  using Scan = cub::BlockScan<Line, kCutThreads>;
  using Count = cub::BlockScan<int, kCutThreads>;
  using Max = cub::BlockReduce<int, kCutThreads>;
  /// What its threads share.
  struct Shared {
    union {
      typename Scan::TempStorage scan;
      typename Count::TempStorage count;
      typename Max::TempStorage max;
    };
    int longest;            // visits of the longest list
    int buckets[kBuckets];  // lists that are longer than a bucket's; bucket 0 has the longest
  };

  __device__ Cutter(const CutParams& params, Shared& shared)
      : p_(params), shared_(shared), blocks_(params.list_count * params.kv_heads_of_list) {}

  __device__ void run() {
    const long long total = total_cost();
    if (blocks_ >= p_.slots) count_buckets();
    if (are_even(total)) {
      sort_lists();
      take_whole();
    } else {
      cut(share_of_line(total, p_.slots, p_.unit_tiles));
    }
  }

 private:
  __device__ long long total_cost() {
    Line own{}, before, total;
    for (int block = static_cast<int>(threadIdx.x); block < blocks_; block += kCutThreads) {
      own.tiles += cost(block);
    }
    scan(own, before, total);
    return total.tiles;
  }

  __device__ void scan(const Line& own, Line& before, Line& all) {
    Scan(shared_.scan).ExclusiveScan(own, before, Line{}, AddLines(), all);
    __syncthreads();  // the scratch is free
  }

  __device__ int list_number(int block) const {
    return p_.first_list + block / p_.kv_heads_of_list;
  }
  __device__ int visits(int list) const { return p_.visits_of_list[list]; }
  __device__ long long cost(int block) const { return cost_of_list(list_number(block)); }
  __device__ long long cost_of_list(int list) const { return cost_of_visits(visits(list)); }
  __device__ long long cost_of_visits(int visits) const {
    return cost_of(visits, p_.unit_visits, p_.unit_tiles);
  }

  // ---- Lists by length, in buckets: near enough to the longest first ----

  __device__ int bucket_of(int visits) const {
    if (visits == 0) return kBuckets - 1;
    return kBuckets - 1 -
           static_cast<int>(ceil_div(std::int64_t{visits} * (kBuckets - 1), shared_.longest));
  }
  /// The most visits that a list of the bucket has.
  __device__ int longest_of(int bucket) const {
    return static_cast<int>(std::int64_t{kBuckets - 1 - bucket} * shared_.longest / (kBuckets - 1));
  }

  __device__ void count_buckets() {
    int longest = 0;
    for (int l = static_cast<int>(threadIdx.x); l < p_.list_count; l += kCutThreads) {
      longest = max(longest, visits(p_.first_list + l));
    }
    longest = Max(shared_.max).Reduce(longest, Larger());
    if (threadIdx.x == 0) shared_.longest = longest;
    int* const mine = shared_.buckets + 2 * threadIdx.x;
    mine[0] = mine[1] = 0;
    __syncthreads();
    for (int l = static_cast<int>(threadIdx.x); l < p_.list_count; l += kCutThreads) {
      atomicAdd(&shared_.buckets[bucket_of(visits(p_.first_list + l))], 1);
    }
    __syncthreads();
    int counts[2] = {mine[0], mine[1]};
    Count(shared_.count).ExclusiveSum(counts, counts);
    mine[0] = counts[0];
    mine[1] = counts[1];
    __syncthreads();
  }

  /// The most visits of the list at a place in the order.
  __device__ int longest_at(int place) const {
    int low = 0;
    int high = kBuckets;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (shared_.buckets[middle] <= place) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return longest_of(low);
  }

  /// Within a bucket in any order: it decides when a block of work begins, not what comes out.
  __device__ void sort_lists() {
    __syncthreads();  // all have looked at the buckets
    for (int l = static_cast<int>(threadIdx.x); l < p_.list_count; l += kCutThreads) {
      const int list = p_.first_list + l;
      p_.order[atomicAdd(&shared_.buckets[bucket_of(visits(list))], 1)] = list;
    }
    __syncthreads();
  }

  /// Would whole blocks, the longest first, end about as early as equal shares? Taken in waves, one
  /// block a slot, none ends later than the longest of each wave together.
  __device__ bool are_even(long long total) const {
    if (blocks_ < p_.slots) return false;
    if (blocks_ >= kManyBlocks * p_.slots) return true;
    long long end = 0;
    for (int first = 0; first < blocks_; first += p_.slots) {
      end += cost_of_visits(longest_at(first / p_.kv_heads_of_list));
    }
    const double share = static_cast<double>(total) / p_.slots + kTaskTiles;
    return static_cast<double>(end) <= kWholeBlocksGain * share;
  }

  __device__ DeviceTask task_of(int list, int head, int begin, int end, int workspace_row) const {
    const PlanList& l = p_.items.lists[list];
    const PlanSequence& sequence = p_.items.sequences[l.sequence];
    int keys = (end - begin) * p_.items.page_size;
    if (end > begin) {  // the sequence may end inside the last page
      const int last = p_.visits[l.first_item + end - 1].logical;
      keys -= max(0, (last + 1) * p_.items.page_size - sequence.kv_len);
    }
    return {l.sequence,           l.kv_head + head,
            l.first_token,        l.tokens * p_.items.group,
            l.first_item + begin, keys,
            workspace_row,        0};
  }

  /// A thread block for each.
  __device__ void take_whole() {
    for (int i = static_cast<int>(threadIdx.x); i <= p_.grid; i += kCutThreads) {
      p_.task_begin[i] = min(i, blocks_);
      if (i >= blocks_) continue;
      const int list = p_.order[i / p_.kv_heads_of_list];
      p_.tasks[i] = task_of(list, i % p_.kv_heads_of_list, 0, visits(list), -1);
    }
    clear_merges(0);
  }

  __device__ BlockCut cut_of(int block, long long begin, long long share) const {
    const long long units = ceil_div(visits(list_number(block)), p_.unit_visits);
    return {begin, units, p_.unit_tiles, share};
  }

  __device__ void cut(long long share) {
    Line line{};  // of the blocks so far
    for (int first = 0; first < blocks_; first += kCutThreads) {
      const int block = first + static_cast<int>(threadIdx.x);
      const bool is_there = block < blocks_;
      // A block's parts depend on its place; the places of its parts on those of all before it.
      Line own{}, before, all, ignored;
      if (is_there) own.tiles = cost(block);
      scan(own, before, ignored);
      if (is_there) add_parts(cut_of(block, line.tiles + before.tiles, share), block, own);
      scan(own, before, all);
      before = AddLines()(line, before);
      line = AddLines()(line, all);
      if (!is_there) continue;
      add_tasks(block, cut_of(block, before.tiles, share), before);
      if (own.merges > 0) add_merge(block, before, own);
    }
    __syncthreads();
    share_out(line.tasks);
    clear_merges(line.merges);
  }

  __device__ void add_parts(const BlockCut& cut, int block, Line& own) const {
    own.tasks = cut.parts();
    if (own.tasks == 1) return;
    own.merges = 1;
    own.rows = own.tasks * p_.items.lists[list_number(block)].tokens * p_.items.group;
  }

  __device__ void add_tasks(int block, const BlockCut& cut, const Line& before) {
    const int list = list_number(block);
    const int all = visits(list);
    const int rows = p_.items.lists[list].tokens * p_.items.group;
    const auto visit_at = [&](int part) {
      return min(static_cast<int>(cut.begin(part)) * p_.unit_visits, all);
    };
    for (int part = 0; part < cut.parts(); ++part) {
      const int row = cut.parts() == 1 ? -1 : p_.first_workspace_row + before.rows + part * rows;
      DeviceTask task =
          task_of(list, block % p_.kv_heads_of_list, visit_at(part), visit_at(part + 1), row);
      task.owner = cut.owner(part);
      p_.tasks[before.tasks + part] = task;
    }
  }

  __device__ void add_merge(int block, const Line& before, const Line& own) {
    const PlanList& list = p_.items.lists[list_number(block)];
    p_.merges[before.merges] = {
        list.kv_head + block % p_.kv_heads_of_list, list.first_token, list.tokens * p_.items.group,
        p_.first_workspace_row + before.rows,       own.tasks,        {}};
  }

  __device__ void clear_merges(int count) {
    for (int i = count + static_cast<int>(threadIdx.x); i < p_.merge_count; i += kCutThreads) {
      p_.merges[i] = {};
    }
  }

  /// task_begin[b]: the first task of a thread block at or after b. Owners rise along the line.
  __device__ void share_out(int tasks) {
    for (int block = static_cast<int>(threadIdx.x); block <= p_.grid; block += kCutThreads) {
      int low = 0;
      int high = tasks;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (p_.tasks[middle].owner < block) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      p_.task_begin[block] = low;
    }
  }

  const CutParams& p_;
  Shared& shared_;
  const int blocks_;
};

__global__ void __launch_bounds__(kCutThreads, 1)
    cut_tasks(const __grid_constant__ CutParams params) {
  __shared__ Cutter::Shared shared;
  Cutter(params, shared).run();
}

}  // namespace

cudaError_t load_cut_kernel() { return load_kernels(cut_tasks); }

cudaError_t launch_cut(const CutParams& params, cudaStream_t stream) {
  cut_tasks<<<1, kCutThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace kvmesh::cuda
