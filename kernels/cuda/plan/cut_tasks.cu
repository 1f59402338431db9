// Planning on the device: from the visits of each list to the tasks that thread blocks claim
// (cut.hpp).
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "core/cuda/load_kernels.hpp"
#include "kernels/cuda/plan/cut.hpp"
#include "kernels/cuda/plan/kernels.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kCutThreads = 512;
constexpr int kCutWarps = kCutThreads / 32;
constexpr int kBuckets = 2 * kCutThreads;  // of lists, by length
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

/// Sums that go along the line of blocks.
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

/// One thread block cuts a launch: a block of work for each of its threads at a time.
class Cutter {
 public:
  using Scan = cub::BlockScan<Sums, kCutThreads>;
  using Tiles = cub::BlockScan<long long, kCutThreads>;
  using Count = cub::BlockScan<int, kCutThreads>;
  using Max = cub::BlockReduce<int, kCutThreads>;
  /// What its threads share.
  struct Shared {
    union {
      typename Scan::TempStorage scan;
      typename Tiles::TempStorage tiles;
      typename Count::TempStorage count;
      typename Max::TempStorage max;
    };
    int longest;            // visits of the longest list
    int buckets[kBuckets];  // lists that are longer than a bucket's; bucket 0 has the longest
  };

  __device__ Cutter(const CutParams& params, Shared& shared)
      : p_(params),
        shared_(shared),
        blocks_(params.list_count * params.kv_heads_of_list),
        first_merge_(params.is_first ? 0 : *params.merges_made) {}

  __device__ void run() {
    count_buckets();
    sort_lists();
    const Line line(total_tiles(), ceil_div(shared_.longest, p_.unit_visits) * p_.unit_tiles,
                    p_.slots, p_.multiprocessors);
    Begun all{};
    for (int first = 0; first < blocks_; first += kCutThreads) {
      cut(line, first + static_cast<int>(threadIdx.x), all);
    }
    __syncthreads();  // all have read the merges made before
    if (threadIdx.x == 0) {
      *p_.task_count = all.sums.tasks;
      *p_.claim = 0;
      *p_.merges_made = first_merge_ + all.sums.merges;
    }
  }

 private:
  __device__ int visits(int list) const { return p_.visits_of_list[list]; }
  __device__ long long units(int list) const { return ceil_div(visits(list), p_.unit_visits); }

  /// Up to a place on the line.
  struct Begun {
    long long tiles = 0;
    int cut_parts = 0;  // of blocks that are cut
    Sums sums{};
  };

  /// Each returns what the threads before have, and adds what all have to `all`.
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
    for (int l = static_cast<int>(threadIdx.x); l < p_.list_count; l += kCutThreads) {
      own += units(p_.first_list + l) * p_.unit_tiles * p_.kv_heads_of_list;
    }
    scan(own, all);
    return all;
  }

  // ---- Lists by length, in buckets: near enough to the longest first ----

  __device__ int bucket_of(int visits) const {
    if (visits == 0) return kBuckets - 1;
    return kBuckets - 1 -
           static_cast<int>(ceil_div(std::int64_t{visits} * (kBuckets - 1), shared_.longest));
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

  /// Within a bucket in the order of the lists, as the cuts depend on a list's place: one warp
  /// after another places its lists.
  __device__ void sort_lists() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    for (int first = 0; first < p_.list_count; first += kCutThreads) {
      const int l = first + static_cast<int>(threadIdx.x);
      const bool is_there = l < p_.list_count;
      const int bucket = is_there ? bucket_of(visits(p_.first_list + l)) : kBuckets;
      for (int turn = 0; turn < kCutWarps && first + turn * 32 < p_.list_count; ++turn) {
        if (warp == turn) place_lists(p_.first_list + l, bucket, is_there);
        __syncthreads();
      }
    }
  }

  __device__ void place_lists(int list, int bucket, bool is_there) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const unsigned peers = __match_any_sync(kWholeWarp, bucket);
    const int before = __popc(peers & ((1u << lane) - 1));
    const int first = is_there ? shared_.buckets[bucket] : 0;
    __syncwarp();
    if (!is_there) return;
    p_.order[first + before] = list;
    if (before == 0) shared_.buckets[bucket] = first + __popc(peers);
  }

  // ---- Blocks, in the order of their lists ----

  __device__ int list_at(int block) const { return p_.order[block / p_.kv_heads_of_list]; }

  __device__ void cut(const Line& line, int block, Begun& all) {
    const bool is_there = block < blocks_;
    const int list = is_there ? list_at(block) : 0;
    const long long begin = scan(is_there ? units(list) * p_.unit_tiles : 0, all.tiles);
    Parts parts{.units = units(list)};
    if (is_there) parts = line.parts(block, begin, units(list), p_.unit_tiles);
    const int cut_parts = parts.count() > 1 ? parts.count() : 0;
    // No more than there is room for: from the first block that has none on, all stay whole.
    if (scan(cut_parts, all.cut_parts) + cut_parts > p_.most_cut_parts) {
      parts = {.units = units(list)};
    }
    const Sums before = scan(is_there ? sums_of(list, parts.count()) : Sums{}, all.sums);
    if (!is_there) return;
    const int head = block % p_.kv_heads_of_list;
    add_tasks(list, head, parts, before);
    if (parts.count() > 1) add_merge(list, head, parts.count(), before);
  }

  __device__ Sums sums_of(int list, int parts) const {
    if (parts == 1) return {1, 0, 0};
    return {parts, 1, parts * p_.items.lists[list].tokens * p_.items.group};
  }

  __device__ void add_tasks(int list, int head, const Parts& parts, const Sums& before) const {
    const int rows = p_.items.lists[list].tokens * p_.items.group;
    const auto visit_at = [&](int part) {
      return min(static_cast<int>(parts.begin(part)) * p_.unit_visits, visits(list));
    };
    for (int part = 0; part < parts.count(); ++part) {
      const int row = parts.count() == 1 ? -1 : p_.first_workspace_row + before.rows + part * rows;
      p_.tasks[before.tasks + part] = task_of(list, head, visit_at(part), visit_at(part + 1), row);
    }
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

  __device__ void add_merge(int list, int head, int parts, const Sums& before) const {
    const PlanList& l = p_.items.lists[list];
    p_.merges[first_merge_ + before.merges] = {l.kv_head + head,
                                               l.first_token,
                                               l.tokens * p_.items.group,
                                               p_.first_workspace_row + before.rows,
                                               parts,
                                               {}};
  }

  const CutParams& p_;
  Shared& shared_;
  const int blocks_;
  const int first_merge_;
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
