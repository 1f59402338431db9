// Mask mods, score mods and explicit block masks drawn at random.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvmesh/block_mask.hpp"
#include "kvmesh/mods.hpp"
#include "launch/verify/random.hpp"

namespace kvmesh::verify {

struct NamedMask {
  std::string name;
  MaskMod mask;
};
struct NamedScore {
  std::string name;
  ScoreMod score;
};

/// For a model of `q_heads` heads and sequences of about `length` tokens. Some depend on the head,
/// some on the batch row, and some leave rows without a visible key.
NamedMask random_mask(Random& random, int q_heads, std::int64_t length);
NamedScore random_score(Random& random, int q_heads);

/// A block mask, and the mask mod with the same visible pairs.
struct CheckedBlockMask {
  BlockMask blocks;
  MaskMod visible;
};

/// Returns the block mask that BlockMask::create makes from `mask`.
CheckedBlockMask created_block_mask(const MaskMod& mask, const BlockMaskShape& shape);
/// Lists that follow no mask: every block empty, partial (then `mask` decides) or full by chance.
CheckedBlockMask listed_block_mask(Random& random, const MaskMod& mask,
                                   const BlockMaskShape& shape);

}  // namespace kvmesh::verify
