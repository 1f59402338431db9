// Is a tile empty, partial or full?
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/mod_evaluator.hpp"
#include "kernels/mods/interval.hpp"

namespace kvmesh {

/// Exact. Intervals first; if they prove nothing, the tile is evaluated, first and last row before
/// the others, until both a visible and a hidden pair were seen. `evaluator` is one for `mask`.
TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, PositionRange q, PositionRange kv);

/// For queries at any positions, at least one.
TileClass classify_tile(const ModGraph& mask, ModEvaluator& evaluator, std::int32_t b,
                        std::int32_t h, std::span<const std::int32_t> q, PositionRange kv);

}  // namespace kvmesh
