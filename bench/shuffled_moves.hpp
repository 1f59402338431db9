// Moves of pages in random order, as after a while of serving, for the benchmarks of CPUs and GPUs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "core/page_moves.hpp"

namespace kvmesh::bench {

inline double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + std::ssize(values) / 2);
  return values[values.size() / 2];
}

/// A page of 16 tokens in `planes` planes of 8 heads, in rows of 256 bytes.
struct PageShape {
  static constexpr int kHeads = 8, kTokens = 16, kRow = 256;
  static constexpr std::int64_t kPlaneBytes = kHeads * kTokens * kRow;
  int planes = 0;
  constexpr std::int64_t bytes() const { return planes * kPlaneBytes; }
};

/// Moves of all pages of one pool to another, or to images or from them.
class ShuffledMoves {
 public:
  ShuffledMoves(PageShape shape, std::int64_t pages, std::byte* images)
      : shape_(shape), pages_(pages) {
    std::vector<std::int32_t> places(static_cast<std::size_t>(pages));
    std::iota(places.begin(), places.end(), 0);
    std::mt19937 random(1);
    std::vector<std::int32_t> slots = places;
    std::ranges::shuffle(places, random);
    std::ranges::shuffle(slots, random);
    for (std::int32_t i = 0; i < pages; ++i) {
      const auto at = static_cast<std::size_t>(i);
      moves_.push_back({.source = places[at], .destination = i, .tokens = PageShape::kTokens});
      packed_.push_back(images + slots[at] * shape.bytes());
    }
  }

  /// Returns the moves between two pools, of which a null one stands for the images. Valid until
  /// the next call.
  PageMoves between(std::byte* from, std::byte* to) {
    planes_.clear();
    for (std::int64_t i = 0; i < shape_.planes; ++i) {
      const std::int64_t at = i * pages_ * PageShape::kPlaneBytes;
      planes_.push_back({from ? from + at : nullptr, to ? to + at : nullptr, PageShape::kRow,
                         i * PageShape::kHeads * PageShape::kRow});
    }
    PageMoves all{.planes = planes_,
                  .heads = PageShape::kHeads,
                  .page_size = PageShape::kTokens,
                  .token_bytes = std::int64_t{shape_.planes} * PageShape::kHeads * PageShape::kRow,
                  .moves = moves_,
                  .packs = to == nullptr};
    if (!from || !to) all.packed = packed_;
    return all;
  }

 private:
  PageShape shape_;
  std::int64_t pages_;
  std::vector<PageMove> moves_;
  std::vector<std::byte*> packed_;
  std::vector<MovedPlane> planes_;
};

}  // namespace kvmesh::bench
