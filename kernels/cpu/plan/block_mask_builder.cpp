// Block masks made on the CPU: BlockMask::create.
#include <algorithm>

#include "kernels/block_mask_shape.hpp"
#include "kernels/cpu/plan/classify.hpp"

namespace kvmesh {
namespace {

/// Block `block` of [0, len), shifted by `start`; the last may be shorter.
PositionRange block_range(std::int64_t block, int block_size, std::int64_t len,
                          std::int32_t start) {
  const std::int64_t begin = block * block_size;
  return {static_cast<std::int32_t>(start + begin),
          static_cast<std::int32_t>(start + std::min(begin + block_size, len))};
}

/// Classifies all kv blocks of one q block.
BlockRow classify_row(const ModGraph& graph, ModEvaluator& evaluator, const BlockMaskShape& shape,
                      std::int64_t b, std::int64_t h, std::int64_t q_block) {
  const PositionRange q = block_range(q_block, shape.q_block, shape.q_len, q_start(shape, b));
  BlockRow row;
  for (std::int64_t block = 0; block < shape.kv_blocks(); ++block) {
    const PositionRange kv = block_range(block, shape.kv_block, shape.kv_len, 0);
    const TileClass tile = classify_tile(graph, evaluator, static_cast<std::int32_t>(b),
                                         static_cast<std::int32_t>(h), q, kv);
    if (tile == TileClass::kPartial) row.partial.push_back(static_cast<std::int32_t>(block));
    if (tile == TileClass::kFull) row.full.push_back(static_cast<std::int32_t>(block));
  }
  return row;
}

}  // namespace

BlockMask BlockMask::create(const MaskMod& mask_mod, const BlockMaskShape& shape) {
  BlockMask mask(mask_mod, shape);
  const ModGraph& graph = mask_mod.graph();
  ModEvaluator evaluator(graph);
  // If the mask does not depend on rows or heads, they repeat the result of the first.
  const bool per_head = graph.depends_on(kDependsHead);
  const bool per_batch = graph.depends_on(kDependsBatch);
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    const bool as_first = !per_batch && q_start(shape, b) == q_start(shape, 0);
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const std::int64_t source_b = as_first ? 0 : b;
      const std::int64_t source_h = per_head ? h : 0;
      for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
        const bool known = source_b != b || source_h != h;
        mask.add_row(known ? mask.copy_row(source_b, source_h, q)
                           : classify_row(graph, evaluator, shape, b, h, q));
      }
    }
  }
  return mask;
}

}  // namespace kvmesh
