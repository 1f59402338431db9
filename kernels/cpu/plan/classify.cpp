#include "kernels/cpu/plan/classify.hpp"

#include <algorithm>
#include <array>
#include <numeric>

namespace kvmesh {
namespace {

/// The pairs seen of a tile so far.
struct Seen {
  bool visible = false;
  bool hidden = false;

  bool both() const { return visible && hidden; }
  TileClass result() const {
    if (both()) return TileClass::kPartial;
    return visible ? TileClass::kFull : TileClass::kEmpty;
  }
};

/// Evaluates which of the keys query `q` sees, kModTile keys at a time.
void look(ModEvaluator& evaluator, std::int32_t b, std::int32_t h, std::int32_t q, PositionRange kv,
          Seen& seen) {
  std::array<std::int32_t, kModTile> positions;
  std::array<std::uint8_t, kModTile> visible;
  for (std::int64_t first = kv.begin; first < kv.end && !seen.both(); first += kModTile) {
    const int count = static_cast<int>(std::min<std::int64_t>(kModTile, kv.end - first));
    std::iota(positions.begin(), positions.begin() + count, static_cast<std::int32_t>(first));
    evaluator.mask(visible.data(), positions.data(), count, b, h, q);
    const int sum = std::accumulate(visible.begin(), visible.begin() + count, 0);
    seen.visible |= sum > 0;
    seen.hidden |= sum < count;
  }
}

/// The first and the last row of a tile differ most, so they are evaluated first.
template <class PositionAt>
TileClass classify_by_evaluation(ModEvaluator& evaluator, std::int32_t b, std::int32_t h,
                                 std::int64_t rows, PositionAt q_at, PositionRange kv) {
  Seen seen;
  look(evaluator, b, h, q_at(0), kv, seen);
  for (std::int64_t row = rows - 1; row > 0 && !seen.both(); --row) {
    look(evaluator, b, h, q_at(row), kv, seen);
  }
  return seen.result();
}

}  // namespace

std::optional<TileClass> classify_by_interval(const ModGraph& mask, std::int32_t b, std::int32_t h,
                                              PositionRange q, PositionRange kv) {
  const std::optional<bool> sees = proved_value(mask, b, h, q, kv);
  if (!sees) return std::nullopt;
  return *sees ? TileClass::kFull : TileClass::kEmpty;
}

TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, PositionRange q, PositionRange kv) {
  if (const auto proved = classify_by_interval(mask, b, h, q, kv)) return *proved;
  const std::int64_t rows = mask.depends_on(kDependsQuery) ? std::int64_t{q.end} - q.begin : 1;
  const auto q_at = [&](std::int64_t row) { return static_cast<std::int32_t>(q.begin + row); };
  return classify_by_evaluation(evaluator, b, h, rows, q_at, kv);
}

TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, std::span<const std::int32_t> q, PositionRange kv) {
  const auto [first, last] = std::ranges::minmax(q);
  if (const auto proved = classify_by_interval(mask, b, h, {first, last + 1}, kv)) return *proved;
  const auto rows = static_cast<std::int64_t>(q.size());
  const auto q_at = [&](std::int64_t row) { return q[static_cast<std::size_t>(row)]; };
  return classify_by_evaluation(evaluator, b, h, rows, q_at, kv);
}

}  // namespace kvmesh
