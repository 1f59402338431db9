// Planning on the device: from the page lists and a step's queries to tasks for thread blocks.
//
//   page lists changed -> [classes of the items] -> places by a scan -> visits -> order -> tasks
//
// The classes come from classify.cuh, which is compiled for the mask, or from a block mask.
#include "kernels/cuda/plan_kernels.hpp"

#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>

#include "kernels/cuda/cut.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCutThreads = 512;
// Whole blocks, which the device hands out as slots fall free, even out what makes one SM slower
// than another, and need no merge: worth a little more than their longest row of work says (H200,
// 512 equal blocks on 264 slots: 4 % faster than equal shares).
constexpr double kWholeBlocksGain = 1.05;

int blocks_for(std::int64_t threads) { return static_cast<int>(ceil_div(threads, kThreads)); }

// ---- The page lists ----

__global__ void change_pages(DevicePage* pages, const PageMove* moves, int move_count,
                             const PageChange* changes, int change_count) {
  if (static_cast<int>(blockIdx.x) < move_count) {
    const PageMove move = moves[blockIdx.x];
    for (std::int64_t i = threadIdx.x; i < move.count; i += blockDim.x) {
      pages[move.to + i] = pages[move.from + i];
    }
    return;
  }
  const int i = static_cast<int>((blockIdx.x - move_count) * blockDim.x + threadIdx.x);
  if (i < change_count) pages[changes[i].at] = changes[i].page;
}

// ---- Items ----

/// The list that an item belongs to: the last that begins at or before it.
__device__ int list_of(const PlanItems& p, int item) {
  int low = 0;
  int high = p.list_count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.lists[middle].first_item <= item) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ const DevicePage& page_of(const PlanItems& p, const PlanList& list, int item) {
  return p.pages[p.sequences[list.sequence].first_page + (item - list.first_item)];
}

/// The class of a page for query head `g` of the list's kv head.
__device__ int table_class(const PlanItems& p, const ClassTable& table, const PlanList& list,
                           int logical, int g) {
  if (logical >= table.kv_blocks || list.q_block >= table.q_blocks) return kEmptyTile;
  const std::int64_t batch = table.batch == 1 ? 0 : list.sequence;
  const std::int64_t head = table.heads == 1 ? 0 : p.first_head + list.kv_head * p.group + g;
  const std::int64_t row = (batch * table.heads + head) * table.q_blocks + list.q_block;
  return table.classes[row * table.kv_blocks + logical];
}

__device__ int class_of_item(const PlanItems& p, const ClassTable& table, int item) {
  const PlanList& list = p.lists[list_of(p, item)];
  const int logical = page_of(p, list, item).logical;
  const int tile_class = table_class(p, table, list, logical, 0);
  for (int g = 1; g < (table.heads == 1 ? 1 : p.group); ++g) {
    if (table_class(p, table, list, logical, g) != tile_class) return kMixedTile;
  }
  return tile_class;
}

__global__ void look_up(const __grid_constant__ PlanItems p,
                        const __grid_constant__ ClassTable table) {
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (item > p.items) return;
  int tile_class = kEmptyTile;
  if (item < p.items) {
    tile_class = table.classes == nullptr ? kFullTile : class_of_item(p, table, item);
  }
  p.classes[item] = static_cast<std::uint8_t>(tile_class);
}

__global__ void spread(const std::int64_t* tiles, int count, std::uint8_t* classes) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) classes[tiles[i] >> 2] = static_cast<std::uint8_t>(tiles[i] & 3);
}

struct IsOfClass {
  const std::uint8_t* classes;
  int tile_class;
  __device__ bool operator()(std::int32_t tile) const { return classes[tile] == tile_class; }
};

struct IsVisited {
  __host__ __device__ std::int32_t operator()(std::uint8_t tile_class) const {
    return tile_class != kEmptyTile;
  }
};
using VisitedIterator = thrust::transform_iterator<IsVisited, const std::uint8_t*>;

// ---- Visits, positions, slots ----

__device__ void list_item(const ListParams& p, int item) {
  const int tile_class = p.items.classes[item];
  if (tile_class == kEmptyTile) return;
  const PlanList& list = p.items.lists[list_of(p.items, item)];
  const DevicePage page = page_of(p.items, list, item);
  const std::int32_t place = p.items.places[item];
  const bool is_mixed = tile_class == kMixedTile;
  const std::int32_t head_classes = is_mixed ? place * p.items.group : -1;
  p.visits[place] = {page.page, page.logical, tile_class != kFullTile, head_classes};
  if (!is_mixed) return;
  for (int g = 0; g < p.items.group; ++g) {
    p.head_classes[head_classes + g] =
        static_cast<std::uint8_t>(table_class(p.items, p.table, list, page.logical, g));
  }
}

__device__ void count_list(const ListParams& p, int l) {
  const PlanList& list = p.items.lists[l];
  const int pages = p.items.sequences[list.sequence].pages;
  p.visits_of_list[l] = p.items.places[list.first_item + pages] - p.items.places[list.first_item];
  p.list_numbers[l] = l;
}

/// Where the token at a position of a sequence is written here: its page, if this rank has it.
__device__ DeviceSlot slot_of(const ListParams& p, const PlanSequence& sequence, int position) {
  const DevicePage* pages = p.items.pages + sequence.first_page;
  const int logical = position / p.items.page_size;
  int low = 0;
  int high = sequence.pages;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (pages[middle].logical < logical) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == sequence.pages || pages[low].logical != logical) return {-1, 0};
  return {pages[low].page, position % p.items.page_size};
}

__device__ void place_tokens(const ListParams& p, const PlanSequence& sequence) {
  for (int i = static_cast<int>(threadIdx.x); i < sequence.queries; i += kThreads) {
    const int token = sequence.first_token + i;
    p.positions[token] = p.items.q_positions != nullptr ? p.items.q_positions[token]
                                                        : sequence.kv_len - sequence.queries + i;
  }
  for (int i = static_cast<int>(threadIdx.x); i < sequence.appended; i += kThreads) {
    p.slots[sequence.first_slot + i] =
        slot_of(p, sequence, sequence.kv_len - sequence.appended + i);
  }
}

__device__ void clear_slots(const ListParams& p) {
  int first = 0;
  if (p.items.sequence_count > 0) {
    const PlanSequence& last = p.items.sequences[p.items.sequence_count - 1];
    first = last.first_slot + last.appended;
  }
  for (int i = first + static_cast<int>(threadIdx.x); i < p.slot_count; i += kThreads) {
    p.slots[i] = {-1, 0};
  }
}

/// The first thread blocks have items, the next lists, the last a sequence each, and one the rest.
__global__ void list_visits(const __grid_constant__ ListParams p, int item_blocks,
                            int list_blocks) {
  int block = static_cast<int>(blockIdx.x);
  if (block < item_blocks) {
    const int item = block * kThreads + static_cast<int>(threadIdx.x);
    if (item < p.items.items) list_item(p, item);
  } else if ((block -= item_blocks) < list_blocks) {
    const int l = block * kThreads + static_cast<int>(threadIdx.x);
    if (l < p.items.list_count) count_list(p, l);
  } else if ((block -= list_blocks) < p.items.sequence_count) {
    place_tokens(p, p.items.sequences[block]);
  } else {
    clear_slots(p);
  }
}

// ---- Tasks ----

/// Sums that go along the line of blocks.
struct Line {
  long long tiles;  // cost of the blocks before
  int tasks;
  int merges;
  int rows;  // of workspace
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

  __device__ Cutter(const CutParams& params, Scan::TempStorage& scratch)
      : p_(params), scratch_(scratch), blocks_(params.list_count * params.kv_heads_of_list) {}

  __device__ void run() {
    const long long total = total_cost();
    if (are_even(total)) {
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
    Scan(scratch_).ExclusiveScan(own, before, Line{}, AddLines(), all);
    __syncthreads();  // the scratch is free
  }

  __device__ int list_number(int block) const {
    return p_.first_list + block / p_.kv_heads_of_list;
  }
  __device__ int visits(int list) const { return p_.visits_of_list[list]; }
  __device__ long long cost(int block) const { return cost_of_list(list_number(block)); }
  __device__ long long cost_of_list(int list) const {
    return cost_of(visits(list), p_.unit_visits, p_.unit_tiles);
  }

  /// Would whole blocks, the longest first, end about as early as equal shares? Taken in waves, one
  /// block a slot, none ends later than the longest of each wave together.
  __device__ bool are_even(long long total) const {
    if (blocks_ < p_.slots) return false;
    if (blocks_ >= kManyBlocks * p_.slots) return true;
    long long end = 0;
    for (int first = 0; first < blocks_; first += p_.slots) {
      end += cost_of_list(p_.order[first / p_.kv_heads_of_list]);
    }
    const double share = static_cast<double>(total) / p_.slots + kTaskTiles;
    return static_cast<double>(end) <= kWholeBlocksGain * share;
  }

  __device__ DeviceTask task_of(int list, int head, int begin, int end, int workspace_row) const {
    const PlanList& l = p_.items.lists[list];
    const PlanSequence& sequence = p_.items.sequences[l.sequence];
    const int first = p_.items.places[l.first_item];
    int keys = (end - begin) * p_.items.page_size;
    if (end > begin) {  // the sequence may end inside the last page
      const int last = p_.visits[first + end - 1].logical;
      keys -= max(0, (last + 1) * p_.items.page_size - sequence.kv_len);
    }
    return {l.sequence,    l.kv_head + head,
            l.first_token, l.tokens * p_.items.group,
            first + begin, keys,
            workspace_row, 0};
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
  Scan::TempStorage& scratch_;
  const int blocks_;
};

__global__ void __launch_bounds__(kCutThreads, 1)
    cut_tasks(const __grid_constant__ CutParams params) {
  __shared__ Cutter::Scan::TempStorage scratch;
  Cutter(params, scratch).run();
}

}  // namespace

cudaError_t launch_change_pages(DevicePage* pages, const PageMove* moves, int move_count,
                                const PageChange* changes, int change_count, cudaStream_t stream) {
  const int blocks = move_count + blocks_for(change_count);
  if (blocks == 0) return cudaSuccess;
  change_pages<<<blocks, kThreads, 0, stream>>>(pages, moves, move_count, changes, change_count);
  return cudaGetLastError();
}

cudaError_t launch_look_up(const PlanItems& items, const ClassTable& table, cudaStream_t stream) {
  look_up<<<blocks_for(std::int64_t{items.items} + 1), kThreads, 0, stream>>>(items, table);
  return cudaGetLastError();
}

cudaError_t launch_spread(const std::int64_t* tiles, int count, std::uint8_t* classes,
                          cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  spread<<<blocks_for(count), kThreads, 0, stream>>>(tiles, count, classes);
  return cudaGetLastError();
}

std::size_t select_scratch_bytes(int tiles) {
  std::size_t bytes = 0;
  std::int32_t* none = nullptr;
  cub::DeviceSelect::If(nullptr, bytes, thrust::counting_iterator<std::int32_t>(0), none, none,
                        tiles, IsOfClass{});
  return bytes;
}

cudaError_t launch_select(const std::uint8_t* classes, int tiles, int tile_class,
                          std::int32_t* selected, std::int32_t* count, void* scratch,
                          std::size_t scratch_bytes, cudaStream_t stream) {
  return cub::DeviceSelect::If(scratch, scratch_bytes, thrust::counting_iterator<std::int32_t>(0),
                               selected, count, tiles, IsOfClass{classes, tile_class}, stream);
}

std::size_t place_scratch_bytes(int items) {
  std::size_t bytes = 0;
  cub::DeviceScan::ExclusiveSum(nullptr, bytes, VisitedIterator(nullptr, IsVisited()),
                                static_cast<std::int32_t*>(nullptr), items + 1);
  return bytes;
}

cudaError_t launch_place(const PlanItems& items, void* scratch, std::size_t scratch_bytes,
                         cudaStream_t stream) {
  return cub::DeviceScan::ExclusiveSum(scratch, scratch_bytes,
                                       VisitedIterator(items.classes, IsVisited()), items.places,
                                       items.items + 1, stream);
}

cudaError_t launch_list(const ListParams& params, cudaStream_t stream) {
  const int item_blocks = blocks_for(params.items.items);
  const int list_blocks = blocks_for(params.items.list_count);
  const int blocks = item_blocks + list_blocks + params.items.sequence_count + 1;
  list_visits<<<blocks, kThreads, 0, stream>>>(params, item_blocks, list_blocks);
  return cudaGetLastError();
}

std::size_t order_scratch_bytes(int lists) {
  std::size_t bytes = 0;
  std::int32_t* none = nullptr;
  cub::DeviceRadixSort::SortPairsDescending(nullptr, bytes, none, none, none, none, lists);
  return bytes;
}

cudaError_t launch_order(const std::int32_t* visits_of_list, std::int32_t* sorted_visits,
                         const std::int32_t* list_numbers, std::int32_t* order, int lists,
                         void* scratch, std::size_t scratch_bytes, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairsDescending(scratch, scratch_bytes, visits_of_list,
                                                   sorted_visits, list_numbers, order, lists, 0, 32,
                                                   stream);
}

cudaError_t launch_cut(const CutParams& params, cudaStream_t stream) {
  cut_tasks<<<1, kCutThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace kvmesh::cuda
