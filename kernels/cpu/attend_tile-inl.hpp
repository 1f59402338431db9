// One task of attend_partial, compiled once per instruction set (Highway).
//
// A task reads its keys in tiles (attend_gather-inl.hpp) and keeps the softmax of the tiles before.

#if defined(KVMESH_ATTEND_TILE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMESH_ATTEND_TILE_INL
#undef KVMESH_ATTEND_TILE_INL
#else
#define KVMESH_ATTEND_TILE_INL
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/numbers/half.hpp"
#include "core/numbers/softmax_merge.hpp"
#include "kernels/cpu/attend_gather-inl.hpp"
#include "kernels/cpu/attend_products-inl.hpp"
#include "kernels/cpu/attend_task.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvmesh::cpu::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// From this many query rows on a task is prefill: arithmetic is the limit, not memory.
constexpr int kManyRows = 16;

// True if the processor's dot products may score keys of T. The tests run each target, and dots
// with this one.
template <class T>
constexpr bool kTakesDots = std::is_same_v<T, hwy::bfloat16_t>&& HWY_TARGET == HWY_AVX3;

// One split of one work block, start to end.
template <class T>
class TaskRunner {
 public:
  TaskRunner(const AttendInputs& in, const WorkTask& task, AttendScratch& scratch)
      : in_(in),
        block_(task.block),
        split_(task.split),
        scratch_(scratch),
        group_(in.shape.q_heads / in.shape.kv_heads),
        rows_(static_cast<int>(block_.q_end - block_.q_begin) * group_),
        has_many_rows_(in.orders_by_rows && rows_ >= kManyRows),
        takes_dots_(kTakesDots<T> && has_many_rows_ && in.q.dtype == Dtype::kBFloat16 &&
                    in.shape.k_dim % 2 == 0 && has_bfloat16_dots()),
        k_dim_(padded(in.shape.k_dim)),
        v_dim_(padded(in.shape.v_dim)),
        widen_k_(!kLoads<T> || has_many_rows_ ||
                 k_dim_ != static_cast<std::size_t>(in.shape.k_dim)),
        widen_v_(!kLoads<T> || v_dim_ != static_cast<std::size_t>(in.shape.v_dim)) {}

  void run() {
    load_queries();
    std::fill_n(scratch_.o.data(), static_cast<std::size_t>(rows_) * v_dim_, 0.0f);
    std::fill_n(scratch_.max.data(), rows_, kNoKeys);
    std::fill_n(scratch_.sum.data(), rows_, 0.0f);
    for_each_tile([&](const Tile<T>& tile, const Tile<T>& next) { use(tile, next); });
    store();
  }

 protected:
  // Calls `use(tile, next)` for each tile of the split, in key order. Double buffered: the next
  // tile is gathered and its lines are prefetched before this one is used.
  template <class Use>
  void for_each_tile(const Use& use) {
    TileReader<T> reader(in_, block_, split_);
    Tile<T> tiles[2];
    int current = 0;
    reader.gather(tiles[0]);
    while (tiles[current].keys > 0) {
      reader.gather(tiles[1 - current]);
      use(tiles[current], tiles[1 - current]);
      current = 1 - current;
    }
  }

  std::int32_t head_of(int row) const { return block_.kv_head * group_ + row % group_; }
  std::int64_t token_of(int row) const {
    return block_.is_shared ? shared_token(row).token : block_.q_begin + row / group_;
  }
  std::int32_t sequence_of(int row) const {
    return block_.is_shared ? shared_token(row).sequence : block_.sequence;
  }
  const SharedToken& shared_token(int row) const {
    return in_.work->shared.tokens[static_cast<std::size_t>(block_.q_begin + row / group_)];
  }

  // Loads the block's queries as float32 rows, scaled, zero past the dim. Many rows: [dim, padded
  // rows].
  void load_queries() {
    if (takes_dots_) return load_query_pairs();
    const std::size_t row_stride = has_many_rows_ ? 1 : k_dim_;
    const std::size_t dim_stride = has_many_rows_ ? padded(rows_) : 1;
    const std::size_t rows = has_many_rows_ ? padded(rows_) : static_cast<std::size_t>(rows_);
    std::fill_n(scratch_.q.data(), rows * k_dim_, 0.0f);
    for (int r = 0; r < rows_; ++r) {
      float* row = scratch_.q.data() + static_cast<std::size_t>(r) * row_stride;
      const std::int64_t at = token_of(r) * in_.q.stride(0) + head_of(r) * in_.q.stride(1);
      for (int d = 0; d < in_.shape.k_dim; ++d, row += dim_stride) {
        *row = in_.scale * load_element(in_.q.data, in_.q.dtype, at + d);
      }
    }
  }

  // Loads the queries in pairs of the dim, [pairs, padded rows]. They stay bfloat16: only the power
  // of two in the scale is multiplied in.
  void load_query_pairs() {
    int exponent = 0;
    dots_scale_ = std::frexp(in_.scale, &exponent);
    const std::size_t rows = padded(rows_);
    std::fill_n(scratch_.q_pairs.data(), rows * static_cast<std::size_t>(in_.shape.k_dim) / 2, 0u);
    for (int r = 0; r < rows_; ++r) {
      const std::int64_t at = token_of(r) * in_.q.stride(0) + head_of(r) * in_.q.stride(1);
      std::uint32_t* pair = scratch_.q_pairs.data() + r;
      for (int d = 0; d < in_.shape.k_dim; d += 2, pair += rows) {
        const auto element = [&](int i) {
          const float value = load_element(in_.q.data, in_.q.dtype, at + d + i);
          return std::uint32_t{float_to_bfloat16(std::ldexp(value, exponent))};
        };
        *pair = element(0) | element(1) << 16;
      }
    }
  }

  // Computes the scores of all rows and keys of the tile, modified and masked.
  void score(const Tile<T>& tile, const Tile<T>& next) {
    const NextRows<T> next_k{next.k, next.keys};
    if (takes_dots_) {
      score_by_dots(tile, next_k);
    } else if (widen_k_) {
      const float* rows[kTileKeys];
      widen(tile.k, tile.k_scale, tile.keys, in_.shape.k_dim, k_dim_, scratch_.k_rows.data(), rows);
      compute_scores(rows, tile.keys, next_k);
    } else if constexpr (kLoads<T>) {
      compute_scores(tile.k, tile.keys, next_k);
    }
    if (scratch_.score_mod) apply_score_mod(tile);
    if (tile.masked) apply_mask(tile);
  }

  // True if a weight of 0 may stand for a key that its row does not see.
  bool hides(const Tile<T>& tile) const { return tile.masked || scratch_.score_mod; }

  void use(const Tile<T>& tile, const Tile<T>& next) {
    score(tile, next);
    for (int r = 0; r < rows_; ++r) softmax_row(r, tile.keys);
    const NextRows<T> next_v{next.v, next.keys};
    const bool hides = this->hides(tile);
    if (widen_v_) {
      const float* rows[kTileKeys];
      widen(tile.v, tile.v_scale, tile.keys, in_.shape.v_dim, v_dim_, scratch_.v_rows.data(), rows);
      accumulate_values(rows, tile.keys, hides, next_v);
    } else if constexpr (kLoads<T>) {
      accumulate_values(tile.v, tile.keys, hides, next_v);
    }
  }

  // Converts rows to padded float32 if vectors cannot load them: their dim is no whole number of
  // vectors, they have scales, or the instruction set lacks the conversion.
  static void widen(const T* const* from, const float* scales, int keys, int dim,
                    std::size_t stride, float* to, const float** rows) {
    for (int key = 0; key < keys; ++key) {
      float* row = to + static_cast<std::size_t>(key) * stride;
      if constexpr (std::is_same_v<T, Float8>) {
        widen_row(from[key], dim, scales[key], row);
      } else {
        widen_row(from[key], dim, row);
      }
      std::fill(row + dim, row + stride, 0.0f);
      rows[key] = row;
    }
  }

  template <class K>
  void compute_scores(const K* const* k, int keys, const NextRows<T>& next) {
    if constexpr (std::is_same_v<K, float>) {
      if (has_many_rows_) return score_many_rows(k, keys, next);
    }
    for (int key = 0; key < keys; key += 4) {
      const K* four[4];
      for (int i = 0; i < 4; ++i) four[i] = k[std::min(key + i, keys - 1)];
      for (int i = key; i < key + 4; ++i) next.prefetch(i, 0, k_dim_);
      for_row_blocks(rows_, [&](auto rows, int r) {
        score_block<rows()>(scratch_.q.data() + static_cast<std::size_t>(r) * k_dim_, k_dim_, four,
                            k_dim_, scratch_.scores.data() + r * kTileKeys + key);
      });
    }
  }

  void score_many_rows(const float* const* k, int keys, const NextRows<T>& next) {
    const int lanes = static_cast<int>(hn::Lanes(kFloats));
    const int dim = in_.shape.k_dim;
    for (int key = 0; key < keys; key += kScoreKeys) {
      const float* columns[kScoreKeys];
      for (int i = 0; i < kScoreKeys; ++i) columns[i] = k[std::min(key + i, keys - 1)];
      for (int i = key; i < key + kScoreKeys; ++i) next.prefetch(i, 0, k_dim_);
      for (int r = 0; r < rows_; r += 2 * lanes) {
        const float* q = scratch_.q.data() + r;
        float* scores = scratch_.scores.data() + r * kTileKeys + key;
        if (rows_ - r > lanes) {
          score_columns<2>(q, padded(rows_), columns, dim, scores);
        } else {
          score_columns<1>(q, padded(rows_), columns, dim, scores);
        }
      }
    }
  }

  void score_by_dots(const Tile<T>& tile, const NextRows<T>& next) {
    if constexpr (kTakesDots<T>) {
      HWY_ALIGN float dots[kDotKeys * kDotRows];
      for (int key = 0; key < tile.keys; key += kDotKeys) {
        const std::uint16_t* keys[kDotKeys];
        for (int i = 0; i < kDotKeys; ++i) {
          const T* row = tile.k[std::min(key + i, tile.keys - 1)];
          keys[i] = reinterpret_cast<const std::uint16_t*>(row);
          next.prefetch(key + i, 0, k_dim_);
        }
        for (int r = 0; r < rows_; r += kDotRows) {
          const bool both_halves = rows_ - r > kDotRows / 2;
          bfloat16_dots(scratch_.q_pairs.data() + r, padded(rows_), keys, in_.shape.k_dim / 2,
                        both_halves, dots);
          store_dots(dots, both_halves, dots_scale_, scratch_.scores.data() + r * kTileKeys + key);
        }
      }
    }
  }

  void apply_score_mod(const Tile<T>& tile) {
    for (int r = 0; r < rows_; ++r) {
      scratch_.score_mod->score(scratch_.scores.data() + r * kTileKeys, tile.position, tile.keys,
                                sequence_of(r), in_.first_head + head_of(r), position_of(r));
    }
  }

  std::int32_t position_of(int row) const {
    return in_.work->positions[static_cast<std::size_t>(token_of(row))];
  }

  TileClass class_of(const PageRange& range, int row) const {
    if (range.head_classes < 0) return range.masked ? TileClass::kPartial : TileClass::kFull;
    return in_.work->head_classes[static_cast<std::size_t>(range.head_classes + row % group_)];
  }

  void apply_mask(const Tile<T>& tile) {
    std::uint8_t visible[kTileKeys];
    for (int r = 0; r < rows_; ++r) {
      float* scores = scratch_.scores.data() + r * kTileKeys;
      if (scratch_.mask_mod) {
        scratch_.mask_mod->mask(visible, tile.position, tile.keys, block_.sequence,
                                in_.first_head + head_of(r), position_of(r));
      } else {
        std::fill_n(visible, tile.keys, std::uint8_t{1});
      }
      for (int s = 0; s < tile.segment_count; ++s) {
        const auto& segment = tile.segments[s];
        const TileClass tile_class = class_of(*segment.range, r);
        if (tile_class == TileClass::kFull) continue;
        for (int key = segment.begin; key < segment.end; ++key) {
          if (tile_class == TileClass::kEmpty || !visible[key]) scores[key] = kNoKeys;
        }
      }
    }
  }

  // Turns the scores of a row into exp(score - max) and rescales the row's sum and outputs.
  void softmax_row(int r, int keys) {
    float* scores = scratch_.scores.data() + r * kTileKeys;
    float& max = scratch_.max[static_cast<std::size_t>(r)];
    float& sum = scratch_.sum[static_cast<std::size_t>(r)];
    std::fill(scores + keys, scores + kTileKeys, kNoKeys);
    const std::size_t lanes = hn::Lanes(kFloats);
    Vector top = hn::Set(kFloats, max);
    auto nan = hn::IsNaN(top);  // the maximum of a NaN and a number is either, by instruction set
    for (std::size_t i = 0; i < kTileKeys; i += lanes) {
      const Vector score = hn::LoadU(kFloats, scores + i);
      top = hn::Max(top, score);
      nan = hn::Or(nan, hn::IsNaN(score));
    }
    const float new_max = hn::GetLane(hn::MaxOfLanes(kFloats, top));
    if (!hn::AllFalse(kFloats, nan) || new_max == -kNoKeys) {
      max = sum = std::numeric_limits<float>::quiet_NaN();
      std::fill_n(scores, kTileKeys, max);
      return;
    }
    if (new_max == kNoKeys) {  // nothing visible yet: exp(-inf - -inf) must not be computed
      std::fill_n(scores, kTileKeys, 0.0f);
      return;
    }
    const Vector shift = hn::Set(kFloats, new_max);
    Vector total = hn::Zero(kFloats);
    for (std::size_t i = 0; i < kTileKeys; i += lanes) {
      const Vector p = exp_of_negative(hn::Sub(hn::LoadU(kFloats, scores + i), shift));
      hn::StoreU(p, kFloats, scores + i);
      total = hn::Add(total, p);
    }
    if (new_max != max) {
      const float keep = max == kNoKeys ? 0.0f : std::exp(max - new_max);
      sum *= keep;
      float* o = scratch_.o.data() + static_cast<std::size_t>(r) * v_dim_;
      for (std::size_t d = 0; d < v_dim_; ++d) o[d] *= keep;
      max = new_max;
    }
    sum += hn::GetLane(hn::SumOfLanes(kFloats, total));
  }

  // `hides`: a weight of 0 may stand for a key that its row does not see.
  template <class V>
  void accumulate_values(const V* const* v, int keys, bool hides, const NextRows<T>& next) {
    for_row_blocks(rows_, [&](auto rows, int r) {
      const float* p = scratch_.scores.data() + r * kTileKeys;
      float* o = scratch_.o.data() + static_cast<std::size_t>(r) * v_dim_;
      const NextRows<T> ask = r == 0 ? next : NextRows<T>{};
      if (hides) {
        value_rows<rows(), true>(p, v, keys, v_dim_, o, v_dim_, ask);
      } else {
        value_rows<rows(), false>(p, v, keys, v_dim_, o, v_dim_, ask);
      }
    });
  }

  void store() {
    for (int r = 0; r < rows_; ++r) {
      const float sum = scratch_.sum[static_cast<std::size_t>(r)];
      const float max = scratch_.max[static_cast<std::size_t>(r)];
      float inverse = max == kNoKeys ? 0.0f : 1.0f / sum;
      float lse = max == kNoKeys ? kNoKeys : max + std::log(sum);
      if (in_.sinks != nullptr && block_.counts_sinks && !block_.is_merged()) {
        const float merged = lse_with_sink(lse, in_.sinks[head_of(r)]);
        inverse *= merge_weight(lse, merged);
        lse = merged;
      }
      const float* from = scratch_.o.data() + static_cast<std::size_t>(r) * v_dim_;
      float* to = o_row(r);
      for (int d = 0; d < in_.shape.v_dim; ++d) to[d] = from[d] * inverse;
      *lse_of(r) = lse;
    }
  }

  std::int64_t workspace_row(int r) const {
    return block_.workspace_row + static_cast<std::int64_t>(split_) * rows_ + r;
  }
  float* o_row(int r) const {
    if (block_.is_merged()) return in_.workspace_o + workspace_row(r) * in_.shape.v_dim;
    return static_cast<float*>(in_.out.o.data) + token_of(r) * in_.out.o.stride(0) +
           head_of(r) * in_.out.o.stride(1);
  }
  float* lse_of(int r) const {
    if (block_.is_merged()) return in_.workspace_lse + workspace_row(r);
    return static_cast<float*>(in_.out.lse.data) + token_of(r) * in_.out.lse.stride(0) +
           head_of(r) * in_.out.lse.stride(1);
  }

  const AttendInputs& in_;
  const WorkBlock& block_;
  const int split_;
  AttendScratch& scratch_;
  const int group_;
  const int rows_;
  const bool has_many_rows_, takes_dots_;
  float dots_scale_ = 1.0f;  // the part of the scale that load_query_pairs left
  const std::size_t k_dim_, v_dim_;
  const bool widen_k_, widen_v_;
};

}  // namespace
}  // namespace kvmesh::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVMESH_ATTEND_TILE_INL
