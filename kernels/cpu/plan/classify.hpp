// Classifies tiles: empty, partial or full.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/cpu/mods/mod_evaluator.hpp"
#include "kernels/mods/interval.hpp"
#include "kernels/tile_class.hpp"

namespace kvmesh {

/// Returns kEmpty or kFull if intervals prove it; otherwise nothing, and the tile may be of any
/// class.
std::optional<TileClass> classify_by_interval(const ModGraph& mask, std::int32_t b, std::int32_t h,
                                              PositionRange q, PositionRange kv);

/// Returns the exact class. Tries intervals first; if they prove nothing, evaluates the tile, first
/// and last row before the others, until both a visible and a hidden pair were seen. REQUIRES:
/// `evaluator` is one for `mask`.
TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, PositionRange q, PositionRange kv);

/// For queries at any positions. REQUIRES: at least one query.
TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, std::span<const std::int32_t> q, PositionRange kv);

}  // namespace kvmesh
