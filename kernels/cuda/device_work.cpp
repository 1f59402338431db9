#include "kernels/cuda/device_work.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>

#include "core/check.hpp"

namespace kvmesh::cuda {
namespace {

// What starting and ending a task costs, in tiles: one round trip to memory for the visits, one for
// the first keys, and the merge of the warps; a tile takes about 1 us while memory is the limit.
constexpr std::int64_t kTaskTiles = 2;
// No task is cut shorter than this: below it the cost above is most of it.
constexpr std::int64_t kLeastTiles = 4;
// With so many blocks for each slot their ends even out by themselves.
constexpr std::int64_t kManyBlocks = 4;
// Whole blocks, which the device hands out as slots fall free, even out what makes one SM slower
// than another, and need no merge: worth a little more than their longest row of work says (H200,
// 512 equal blocks on 264 slots: 4 % faster than equal shares).
constexpr double kWholeBlocksGain = 1.05;

std::int32_t to_int32(std::int64_t value, const char* what) {
  require(value <= std::numeric_limits<std::int32_t>::max(),
          "attention: {} {} are more than a device plan can have", value, what);
  return static_cast<std::int32_t>(value);
}

/// Cuts the blocks of one launch.
class Cutter {
 public:
  Cutter(const AttentionShape& shape, const std::vector<std::int64_t>& kv_lens,
         const AttendWork& work, const LaunchShape& launch, DeviceWork& out)
      : shape_(shape),
        group_(shape.q_heads / shape.kv_heads),
        kv_lens_(kv_lens),
        work_(work),
        launch_(launch),
        tile_visits_(std::max(1, launch.tile_keys / shape.page_size)),
        out_(out) {}

  LaunchWork cut(const std::vector<const RowBlock*>& in_order) {
    std::vector<const RowBlock*> blocks = in_order;
    std::stable_sort(blocks.begin(), blocks.end(), [&](const RowBlock* a, const RowBlock* b) {
      return visits_of(*a) > visits_of(*b);
    });
    if (are_even(blocks)) {
      cut_by_blocks(blocks);
    } else {
      cut_by_tiles(in_order);
    }
    if (std::ssize(result_.tasks) > result_.task_begin.back()) close();
    return std::move(result_);
  }

 private:
  std::int64_t visits_of(const RowBlock& block) const {
    return block.visit_end - block.visit_begin;
  }
  std::int64_t tiles_of(std::int64_t visits) const {
    return tile_visits_ == 1
               ? (visits * shape_.page_size + launch_.tile_keys - 1) / launch_.tile_keys
               : (visits + tile_visits_ - 1) / tile_visits_;
  }
  std::int64_t visits_in(std::int64_t tiles) const {
    return tile_visits_ == 1
               ? std::max<std::int64_t>(1, tiles * launch_.tile_keys / shape_.page_size)
               : tiles * tile_visits_;
  }

  /// Ends the share of the thread block at hand.
  void close() {
    result_.task_begin.push_back(to_int32(std::ssize(result_.tasks), "tasks"));
    used_ = 0;
  }

  /// Would whole blocks, the longest first, each on the slot that is free first, end about as early
  /// as equal shares?
  bool are_even(const std::vector<const RowBlock*>& blocks) const {
    if (std::ssize(blocks) < launch_.slots) return false;
    if (std::ssize(blocks) >= kManyBlocks * launch_.slots) return true;
    std::priority_queue<std::int64_t, std::vector<std::int64_t>, std::greater<>> ends;
    for (int slot = 0; slot < launch_.slots; ++slot) ends.push(0);
    std::int64_t total = 0, last = 0;
    for (const RowBlock* block : blocks) {
      const std::int64_t tiles = tiles_of(visits_of(*block)) + kTaskTiles;
      const std::int64_t end = ends.top() + tiles;
      ends.pop();
      ends.push(end);
      total += tiles;
      last = std::max(last, end);
    }
    const double share = static_cast<double>(total) / launch_.slots + kTaskTiles;
    return static_cast<double>(last) <= kWholeBlocksGain * share;
  }

  void cut_by_blocks(const std::vector<const RowBlock*>& blocks) {
    for (const RowBlock* block : blocks) {
      add_task(*block, 0, visits_of(*block));
      close();
    }
  }

  void cut_by_tiles(const std::vector<const RowBlock*>& blocks) {
    std::int64_t total = 0;
    for (const RowBlock* block : blocks) total += tiles_of(visits_of(*block)) + kTaskTiles;
    // A cut makes one task more; there is about one cut a thread block.
    const std::int64_t share = std::max(kLeastTiles + kTaskTiles,
                                        (total + launch_.slots - 1) / launch_.slots + kTaskTiles);
    for (const RowBlock* block : blocks) cut_block(*block, share);
  }

  /// Fills the thread block at hand and goes on with the next. The last one takes what is left.
  void cut_block(const RowBlock& block, std::int64_t share) {
    const std::size_t first_task = result_.tasks.size();
    const std::int64_t visits = visits_of(block);
    std::int64_t begin = 0;
    do {
      const std::int64_t left = tiles_of(visits - begin);
      const bool is_full = used_ > 0 && share - used_ < kTaskTiles + std::min(left, kLeastTiles);
      if (is_full && !is_last()) close();
      std::int64_t take = is_last() ? left : std::min(left, share - used_ - kTaskTiles);
      if (left - take < kLeastTiles) take = left;
      const std::int64_t end = std::min(visits, begin + std::max<std::int64_t>(1, visits_in(take)));
      add_task(block, begin, end);
      used_ += take + kTaskTiles;
      begin = end;
    } while (begin < visits);
    if (result_.tasks.size() - first_task > 1) add_merge(block, first_task);
  }

  bool is_last() const { return result_.blocks() + 1 == launch_.slots; }

  /// The tasks from `first_task` on are the splits of a block: they leave partials.
  void add_merge(const RowBlock& block, std::size_t first_task) {
    const std::int64_t rows = (block.q_end - block.q_begin) * group_;
    const std::int64_t splits = std::ssize(result_.tasks) - static_cast<std::int64_t>(first_task);
    out_.merges.push_back({.kv_head = block.kv_head,
                           .first_token = static_cast<std::int32_t>(block.q_begin),
                           .rows = static_cast<std::int32_t>(rows),
                           .workspace_row = static_cast<std::int32_t>(out_.workspace_rows),
                           .splits = static_cast<std::int32_t>(splits),
                           .unused = {}});
    to_int32(out_.workspace_rows + splits * rows, "rows of workspace");
    for (std::size_t task = first_task; task < result_.tasks.size(); ++task) {
      result_.tasks[task].workspace_row = static_cast<std::int32_t>(out_.workspace_rows);
      out_.workspace_rows += rows;
    }
  }

  void add_task(const RowBlock& block, std::int64_t begin, std::int64_t end) {
    const std::int64_t first = block.visit_begin + begin;
    std::int64_t keys = (end - begin) * shape_.page_size;
    if (end > begin) {  // the sequence may end inside the last page
      const PageVisit& last = work_.visits[static_cast<std::size_t>(block.visit_begin + end - 1)];
      const std::int64_t past = (std::int64_t{last.logical} + 1) * shape_.page_size -
                                kv_lens_[static_cast<std::size_t>(block.sequence)];
      keys -= std::max<std::int64_t>(0, past);
    }
    result_.tasks.push_back(
        {.sequence = block.sequence,
         .kv_head = block.kv_head,
         .first_token = static_cast<std::int32_t>(block.q_begin),
         .rows = static_cast<std::int32_t>((block.q_end - block.q_begin) * group_),
         .first_visit = static_cast<std::int32_t>(first),
         .keys = to_int32(keys, "keys of one task"),
         .workspace_row = -1,
         .unused = 0});
  }

  const AttentionShape& shape_;
  const int group_;
  const std::vector<std::int64_t>& kv_lens_;
  const AttendWork& work_;
  const LaunchShape launch_;
  const std::int64_t tile_visits_;
  DeviceWork& out_;
  LaunchWork result_;
  std::int64_t used_ = 0;  // tiles of the thread block at hand
};

}  // namespace

DeviceWork make_device_work(const AttentionShape& shape, const std::vector<std::int64_t>& kv_lens,
                            const AttendWork& work, int short_rows, const LaunchShape& short_launch,
                            const LaunchShape& long_launch) {
  DeviceWork out;
  to_int32(std::ssize(work.visits), "visited pages");
  to_int32(std::ssize(work.positions), "query tokens");
  out.visits.reserve(work.visits.size());
  for (const PageVisit& visit : work.visits) {
    out.visits.push_back({visit.page, visit.logical, visit.masked, visit.head_classes});
  }
  for (TileClass tile_class : work.head_classes) {
    out.head_classes.push_back(static_cast<std::uint8_t>(tile_class));
  }
  std::vector<const RowBlock*> short_blocks, long_blocks;
  const int group = shape.q_heads / shape.kv_heads;
  for (const RowBlock& block : work.blocks) {
    const bool is_short = (block.q_end - block.q_begin) * group <= short_rows;
    (is_short ? short_blocks : long_blocks).push_back(&block);
  }
  out.short_rows = Cutter(shape, kv_lens, work, short_launch, out).cut(short_blocks);
  out.long_rows = Cutter(shape, kv_lens, work, long_launch, out).cut(long_blocks);
  return out;
}

}  // namespace kvmesh::cuda
