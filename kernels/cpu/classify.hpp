// Classifies tiles: empty, partial or full.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/mod_evaluator.hpp"
#include "kernels/mods/interval.hpp"

namespace kvmesh {

/// Returns the exact class. Tries intervals first; if they prove nothing, evaluates the tile, first
/// and last row before the others, until both a visible and a hidden pair were seen. REQUIRES:
/// `evaluator` is one for `mask`.
TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, PositionRange q, PositionRange kv);

/// For queries at any positions. REQUIRES: at least one query.
TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, std::span<const std::int32_t> q, PositionRange kv);

}  // namespace kvmesh
