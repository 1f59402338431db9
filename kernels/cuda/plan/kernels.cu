// Planning on the device: from the page lists and a step's queries to visits. split_tasks.cu turns
// these into tasks.
//
//   page lists changed -> [classes of the candidates] -> visits of each query block -> tasks
//
// The classes come from classify.cuh, which is compiled for the mask, or from a block mask.
#include "kernels/cuda/plan/kernels.hpp"

#include <thrust/iterator/counting_iterator.h>

#include <cub/block/block_scan.cuh>
#include <cub/device/device_select.cuh>

#include "core/cuda/load_kernels.hpp"
#include "kernels/cuda/plan/candidates.cuh"
#include "kernels/cuda/plan/split.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kListThreads = 512;
constexpr int kThreadCandidates = 4;  // pages that a thread takes at a time

int blocks_for(std::int64_t threads) { return static_cast<int>(ceil_div(threads, kThreads)); }

// ---- The page lists ----

__global__ void change_pages(LocalPage* pages, const ListMove* moves, int move_count,
                             const PageChange* changes, int change_count) {
  if (static_cast<int>(blockIdx.x) < move_count) {
    const ListMove move = moves[blockIdx.x];
    for (std::int64_t i = threadIdx.x; i < move.count; i += blockDim.x) {
      pages[move.to + i] = pages[move.from + i];
    }
    return;
  }
  const int i = static_cast<int>((blockIdx.x - move_count) * blockDim.x + threadIdx.x);
  if (i < change_count) pages[changes[i].at] = changes[i].page;
}

// ---- Candidates ----

/// The class of a page for query head `g` of the query block's kv head.
__device__ TileClass table_class(const PlanCandidates& p, const ClassTable& table,
                                 const QueryBlock& query_block, int logical, int g) {
  if (logical >= table.kv_blocks || query_block.q_block >= table.q_blocks) return TileClass::kEmpty;
  const std::int64_t batch = table.batch == 1 ? 0 : query_block.sequence;
  const std::int64_t head = table.heads == 1 ? 0 : p.first_head + query_block.kv_head * p.group + g;
  const std::int64_t row = (batch * table.heads + head) * table.q_blocks + query_block.q_block;
  return table.classes[row * table.kv_blocks + logical];
}

__device__ TileClass class_of_candidate(const PlanCandidates& p, const ClassTable& table,
                                        int candidate) {
  const QueryBlock& query_block = p.query_blocks[query_block_of(p, candidate)];
  const int logical = page_of(p, query_block, candidate).logical;
  const TileClass tile_class = table_class(p, table, query_block, logical, 0);
  for (int g = 1; g < (table.heads == 1 ? 1 : p.group); ++g) {
    if (table_class(p, table, query_block, logical, g) != tile_class) return TileClass::kMixed;
  }
  return tile_class;
}

__global__ void look_up(const __grid_constant__ PlanCandidates p,
                        const __grid_constant__ ClassTable table) {
  const int candidate = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (candidate >= p.candidate_count) return;
  const TileClass tile_class =
      table.classes == nullptr ? TileClass::kFull : class_of_candidate(p, table, candidate);
  p.classes[candidate] = tile_class;
}

__global__ void spread(const std::int64_t* tiles, int count, TileClass* classes) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) classes[tiles[i] >> 2] = static_cast<TileClass>(tiles[i] & 3);
}

/// An int, because a byte costs CUB's kernel a spilled register on sm_100.
struct IsOfClass {
  const TileClass* classes;
  int tile_class;
  __device__ bool operator()(std::int32_t tile) const {
    return static_cast<int>(classes[tile]) == tile_class;
  }
};

// ---- Visits, positions, token slots ----

using ListScan = cub::BlockScan<int, kListThreads>;

__device__ void write_visit(const ListParams& p, const QueryBlock& query_block, int candidate,
                            int place) {
  const TileClass tile_class = p.candidates.classes[candidate];
  const LocalPage page = page_of(p.candidates, query_block, candidate);
  const bool is_mixed = tile_class == TileClass::kMixed;
  p.visits[place] = {page.page, static_cast<std::uint32_t>(page.logical),
                     tile_class != TileClass::kFull, is_mixed};
  if (!is_mixed) return;
  for (int g = 0; g < p.candidates.group; ++g) {
    p.head_classes[place * p.candidates.group + g] =
        table_class(p.candidates, p.table, query_block, page.logical, g);
  }
}

/// A thread block removes the empty pages of its query block, kThreadCandidates per thread at a
/// time.
__device__ void list_pages(const ListParams& p, int l, ListScan::TempStorage& scratch) {
  const QueryBlock& query_block = p.candidates.query_blocks[l];
  const int end = query_block.first_candidate + p.candidates.sequences[query_block.sequence].pages;
  int place = query_block.first_candidate;
  for (int first = query_block.first_candidate; first < end;
       first += kListThreads * kThreadCandidates) {
    const int begin = first + static_cast<int>(threadIdx.x) * kThreadCandidates;
    const auto is_visited = [&](int candidate) {
      return candidate < end && p.candidates.classes[candidate] != TileClass::kEmpty;
    };
    int count = 0, before = 0, all = 0;
    for (int i = 0; i < kThreadCandidates; ++i) count += is_visited(begin + i);
    ListScan(scratch).ExclusiveSum(count, before, all);
    __syncthreads();  // the scratch is free
    for (int i = 0; i < kThreadCandidates; ++i) {
      if (is_visited(begin + i)) write_visit(p, query_block, begin + i, place + before++);
    }
    place += all;
  }
  if (threadIdx.x == 0) p.visits_of_query_block[l] = place - query_block.first_candidate;
}

/// Returns the slot of the token at a position of a sequence, if this rank has its page.
__device__ TokenSlot slot_of(const ListParams& p, const PlanSequence& sequence, int position) {
  const LocalPage* pages = p.candidates.pages + sequence.first_page;
  const int logical = position / p.candidates.page_size;
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
  return {pages[low].page, position % p.candidates.page_size};
}

__device__ void place_tokens(const ListParams& p, const PlanSequence& sequence) {
  for (int i = static_cast<int>(threadIdx.x); i < sequence.queries; i += kListThreads) {
    const int token = sequence.first_token + i;
    p.positions[token] = p.candidates.q_positions != nullptr
                             ? p.candidates.q_positions[token]
                             : sequence.kv_len - sequence.queries + i;
    if (p.row_tokens != nullptr) p.row_tokens[token] = token;
  }
  for (int i = static_cast<int>(threadIdx.x); i < sequence.appended; i += kListThreads) {
    p.token_slots[sequence.first_token_slot + i] =
        slot_of(p, sequence, sequence.kv_len - sequence.appended + i);
  }
}

__device__ void copy_shared_tokens(const ListParams& p) {
  for (int i = static_cast<int>(threadIdx.x); i < p.shared_token_count; i += kListThreads) {
    p.row_tokens[p.token_count + i] = p.shared_tokens[i];
  }
}

__device__ void clear_slots(const ListParams& p) {
  int first = 0;
  if (p.candidates.sequence_count > 0) {
    const PlanSequence& last = p.candidates.sequences[p.candidates.sequence_count - 1];
    first = last.first_token_slot + last.appended;
  }
  for (int i = first + static_cast<int>(threadIdx.x); i < p.token_slot_count; i += kListThreads) {
    p.token_slots[i] = {-1, 0};
  }
}

/// The first thread blocks take a query block each, the next a sequence each, and one the rest.
__global__ void __launch_bounds__(kListThreads) list_visits(const __grid_constant__ ListParams p) {
  __shared__ ListScan::TempStorage scratch;
  int block = static_cast<int>(blockIdx.x);
  if (block < p.candidates.query_block_count) {
    list_pages(p, block, scratch);
  } else if ((block -= p.candidates.query_block_count) < p.candidates.sequence_count) {
    place_tokens(p, p.candidates.sequences[block]);
  } else {
    clear_slots(p);
    copy_shared_tokens(p);
    if (threadIdx.x == 0) *p.query_tokens = p.token_count;
  }
}

}  // namespace

cudaError_t load_plan_kernels() {
  const cudaError_t status = load_split_kernel();
  return status == cudaSuccess ? load_kernels(change_pages, look_up, list_visits) : status;
}

cudaError_t launch_change_pages(LocalPage* pages, const ListMove* moves, int move_count,
                                const PageChange* changes, int change_count, cudaStream_t stream) {
  const int blocks = move_count + blocks_for(change_count);
  if (blocks == 0) return cudaSuccess;
  change_pages<<<blocks, kThreads, 0, stream>>>(pages, moves, move_count, changes, change_count);
  return cudaGetLastError();
}

cudaError_t launch_look_up(const PlanCandidates& candidates, const ClassTable& table,
                           cudaStream_t stream) {
  if (candidates.candidate_count == 0) return cudaSuccess;
  look_up<<<blocks_for(candidates.candidate_count), kThreads, 0, stream>>>(candidates, table);
  return cudaGetLastError();
}

cudaError_t launch_spread(const std::int64_t* tiles, int count, TileClass* classes,
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

cudaError_t launch_select(const TileClass* classes, int tiles, TileClass tile_class,
                          std::int32_t* selected, std::int32_t* count, void* scratch,
                          std::size_t scratch_bytes, cudaStream_t stream) {
  return cub::DeviceSelect::If(scratch, scratch_bytes, thrust::counting_iterator<std::int32_t>(0),
                               selected, count, tiles,
                               IsOfClass{classes, static_cast<int>(tile_class)}, stream);
}

cudaError_t launch_list(const ListParams& params, cudaStream_t stream) {
  const int blocks = params.candidates.query_block_count + params.candidates.sequence_count + 1;
  list_visits<<<blocks, kListThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace kvmesh::cuda
