// The stream of pieces and tiles that a producer warp copies, each step known before it is needed.
#pragma once

#include "core/cuda/device/warp.cuh"
#include "kernels/cuda/attend/common/launch_order.cuh"
#include "kernels/cuda/attend/common/pieces.cuh"
#include "kernels/cuda/attend/common/rows.cuh"

namespace kvmesh::cuda {

/// Tiles of `TileKeys` keys, each of boxes of `BoxRows` keys, one box per lane. Where `Warps` share
/// the copying, each has as many neighbouring boxes; the first claims the pieces.
template <int TileKeys, int BoxRows, int Warps = 1>
class PieceStream {
 public:
  __device__ explicit PieceStream(const AttendParams& params)
      : p_(params), pieces_(params, params.task_counts->early_blocks) {}

  /// Tiles of a task: producers and math warps count them alike.
  __device__ static int tiles_of(const DeviceTask& task) {
    return (task.keys + TileKeys - 1) / TileKeys;
  }

  /// Calls begin(n, task) for each piece of this thread block, the n-th, and once more with a task
  /// without rows; and fill(task, tile, visit, next) for each tile, where `visit` is the lane's: of
  /// no page where the tile has fewer. `next` is that of the tile after it, of no page after the
  /// last of the piece; it is on its way from memory.
  ///
  /// Reads what the plan has written while the previous kernel may still run, and everything else
  /// after that kernel's end. When the first tile of a piece is under way, it claims the piece
  /// after the next and reads the task of the next: these three accesses depend on one another, and
  /// must not delay the tiles.
  template <class Begin, class Fill>
  __device__ void run(Begin begin, Fill fill) {
    DeviceTask task = first_task();
    PageVisit visit = visit_of(task, 0);
    wait_for_inputs(p_);
    start_next_launch(p_);
    int claimed = pieces_.claim();
    for (int n = 0;; ++n) {
      begin(n, task);
      if (task.rows == 0) break;
      const int tiles = tiles_of(task);
      DeviceTask coming{};
      for (int tile = 0; tile < tiles || tile == 0; ++tile) {
        const PageVisit now = visit;
        if (tile > 0 || tile + 1 < tiles) {
          visit = tile + 1 < tiles ? visit_of(task, tile + 1) : visit_of(coming, 0);
        }
        if (tile < tiles) fill(task, tile, now, tile + 1 < tiles ? visit : PageVisit{-1, 0, 0, 0});
        if (tile > 0) continue;
        coming = task_at(__shfl_sync(kAllLanes, claimed, 0));
        claimed = pieces_.claim();
        if (tiles <= 1) visit = visit_of(coming, 0);
      }
      task = coming;
    }
  }

  /// Calls fill(tile, visit, next) for each tile of a task in warp `warp`, which is not the first.
  template <class Fill>
  __device__ static void run_tiles(const AttendParams& p, const DeviceTask& task, int warp,
                                   Fill fill) {
    PageVisit visit = visit_of(p, task, 0, warp);
    for (int tile = 0; tile < tiles_of(task); ++tile) {
      const PageVisit now = visit;
      visit = visit_of(p, task, tile + 1, warp);  // of no page after the last
      fill(tile, now, visit);
    }
  }

 private:
  static constexpr int kBoxes = TileKeys / BoxRows / Warps;  // of a warp

  /// The task of the block's number is read beside the counts, not after them. A claim before
  /// wait_for_inputs finds the counter of the layer before at 0 again: all blocks of a first launch
  /// are early, and a later launch starts after the first has waited.
  __device__ DeviceTask first_task() const {
    const DeviceTask own = p_.tasks[blockIdx.x];
    if (!pieces_.is_early()) return task_at(uniform(pieces_.claim()));
    return static_cast<int>(blockIdx.x) < pieces_.count() ? own : DeviceTask{};
  }

  /// A task without rows follows the last.
  __device__ DeviceTask task_at(int piece) const {
    if (piece >= pieces_.count()) return {};
    return p_.tasks[piece];
  }

  __device__ PageVisit visit_of(const DeviceTask& task, int tile) const {
    return visit_of(p_, task, tile, 0);
  }

  /// The lane's visit in warp `warp`.
  __device__ static PageVisit visit_of(const AttendParams& p, const DeviceTask& task, int tile,
                                       int warp) {
    const int lane = threadIdx.x % 32;
    const int key = tile * TileKeys + (warp * kBoxes + lane) * BoxRows;
    if (lane >= kBoxes || key >= task.keys) return {-1, 0, 0, 0};
    return p.visits[task.first_visit + key / kPageSize];
  }

  const AttendParams& p_;
  Pieces pieces_;
};

/// Copies rows of a query image, 16 bytes of type `To` at a time: `unit` of row r of a task goes to
/// shared address `to`.
/// Rows past the task's are 0: their scores are computed and never stored. Asynchronous if queries
/// are of that type and aligned, else done on return; then fence_proxy_async makes the rows
/// visible.
template <Dtype To>
__device__ inline void load_query_unit(const AttendParams& p, const DeviceTask& task, int r,
                                       int unit, std::uint32_t to) {
  const bool is_there = r < task.rows;
  const int row = is_there ? r : 0;
  const std::int64_t at = token_of(p, task, row) * p.q_token_stride +
                          (task.kv_head * kGroup + row % kGroup) * p.q_head_stride + unit * 8;
  if constexpr (kQueryVectors && kQueryType == To) {
    cp_async_16_zfill(to, static_cast<const std::uint16_t*>(p.q) + at, is_there ? 16 : 0);
  } else {
    st_shared_v4(to, is_there ? load_unit<kQueryType, To>(p.q, at) : uint4{});
  }
}

}  // namespace kvmesh::cuda
