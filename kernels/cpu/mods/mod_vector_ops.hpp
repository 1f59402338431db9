// The vector operations that a mod's graph becomes on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/mods/graph.hpp"

namespace kvmesh {

/// Keys per call of a mod. 64 is the largest tile of the attention kernel, and a node's tile (256
/// bytes) stays in the first-level cache together with dozens of others.
inline constexpr int kModTile = 64;
/// Tiles are processed in groups of this many values: the lanes of the widest vectors in use.
inline constexpr int kModLanes = 16;

/// One node over a tile: slots[out][i] = op(slots[in[0]][i], ...). A bool is all ones or all zeros.
struct VectorOp {
  ModOp op = ModOp::kConstant;
  ModType operand = ModType::kFloat32;
  std::int32_t in[3] = {0, 0, 0};
  std::int32_t out = 0;
  const ModBuffer* buffer = nullptr;
};

/// Runs `program` over the first `count` values (a multiple of kModLanes) of each slot.
void run_vector_ops(std::span<const VectorOp> program, std::uint32_t* const* slots,
                    std::size_t count);

/// bytes[i] = bools[i] & 1, for `count` values, a multiple of kModLanes.
void bools_to_bytes(const std::uint32_t* bools, std::uint8_t* bytes, std::size_t count);

}  // namespace kvmesh
