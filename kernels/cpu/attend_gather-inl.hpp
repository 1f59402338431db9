// The tiles of a task, compiled once per instruction set (Highway).
//
// Each key has a pointer of its own, so a tile may span any number of pages of any size.

#if defined(KVMESH_ATTEND_GATHER_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMESH_ATTEND_GATHER_INL
#undef KVMESH_ATTEND_GATHER_INL
#else
#define KVMESH_ATTEND_GATHER_INL
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/attend_task.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::cpu::HWY_NAMESPACE {
namespace {

// A tile: up to 64 keys of a task, in ascending position.
template <class T>
struct Tile {
  const T* k[kTileKeys];
  const T* v[kTileKeys];
  std::int32_t position[kTileKeys];
  float k_scale[kTileKeys], v_scale[kTileKeys];  // of float8 keys and values
  int keys = 0;
  // The visits that the keys came from, for a tile with a mask.
  struct Segment {
    const PageRange* range;
    int begin, end;
  };
  Segment segments[kTileKeys];
  int segment_count = 0;
  bool masked = false;
};

// Reads one split of one work block.
template <class T>
class TileReader {
 public:
  TileReader(const AttendInputs& in, const WorkBlock& block, int split)
      : in_(in),
        block_(block),
        visit_(block.visit_begin + split * std::int64_t{in.work->visits_per_split}),
        visit_end_(block.splits == 1
                       ? block.visit_end
                       : std::min(visit_ + in.work->visits_per_split, block.visit_end)) {}

  // Gathers the next keys of the task; a page that does not fit continues in the next tile.
  void gather(Tile<T>& tile) {
    tile.keys = tile.segment_count = 0;
    tile.masked = false;
    const int page_size = in_.shape.page_size;
    const std::int64_t kv_len = in_.kv_lens[block_.sequence];
    while (visit_ < visit_end_ && tile.keys < kTileKeys) {
      const PageRange& range = range_of_visit();
      const LocalPage page = range.pages[visit_ - range.first_visit];
      const std::int64_t first = static_cast<std::int64_t>(page.logical) * page_size;
      const int live = static_cast<int>(std::min<std::int64_t>(page_size, kv_len - first));
      const int take = std::min(live - offset_, kTileKeys - tile.keys);
      tile.segments[tile.segment_count++] = {&range, tile.keys, tile.keys + take};
      tile.masked |= range.masked;
      for (int i = 0; i < take; ++i, ++tile.keys) {
        tile.k[tile.keys] = key_row(in_.pool.k, page.page, offset_ + i);
        tile.v[tile.keys] = key_row(in_.pool.v, page.page, offset_ + i);
        tile.position[tile.keys] = static_cast<std::int32_t>(first) + offset_ + i;
        if constexpr (std::is_same_v<T, Float8>) {
          tile.k_scale[tile.keys] = scale_of(in_.pool.k_scale, page.page, offset_ + i);
          tile.v_scale[tile.keys] = scale_of(in_.pool.v_scale, page.page, offset_ + i);
        }
      }
      offset_ += take;
      if (offset_ >= live) {
        ++visit_;
        offset_ = 0;
      }
    }
  }

 private:
  const T* key_row(const ConstTensorView& pool, std::int32_t page, int offset) const {
    return static_cast<const T*>(pool.data) + page * pool.stride(0) +
           block_.kv_head * pool.stride(1) + offset * pool.stride(2);
  }

  // Returns the range of visit `visit_`. Visits only increase.
  const PageRange& range_of_visit() {
    const PageRange* ranges = in_.work->ranges.data();
    if (range_ == nullptr) {
      range_ = std::upper_bound(ranges + block_.range_begin, ranges + block_.range_end, visit_,
                                [](std::int64_t visit, const PageRange& range) {
                                  return visit < range.first_visit;
                                }) -
               1;
    }
    while (visit_ >= range_->first_visit + range_->count) ++range_;
    return *range_;
  }

  float scale_of(const BasicRowScale<ConstTensorView>& scale, std::int32_t page, int offset) const {
    const ConstTensorView& rows = scale.per_token;
    if (rows.empty()) return scale.number;
    return static_cast<const float*>(
        rows.data)[page * rows.stride(0) + block_.kv_head * rows.stride(1) +
                   offset * rows.stride(2)];
  }

  const AttendInputs& in_;
  const WorkBlock& block_;
  std::int64_t visit_, visit_end_;
  const PageRange* range_ = nullptr;  // of visit_; null: not looked up yet
  int offset_ = 0;                    // keys of the current visit in earlier tiles
};

}  // namespace
}  // namespace kvmesh::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVMESH_ATTEND_GATHER_INL
