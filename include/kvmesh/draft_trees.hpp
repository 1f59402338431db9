// The mask of draft trees: speculation that verifies several drafts of a sequence in one step.
//
//   mods::DraftTrees trees(batch, 16);                      // once; plans have trees.mask()
//   trees.set(row, first_position, parents);                // each step
//   ...                                                     // plan, run, choose the path
//   cache.compact(kept);                                    // KvCache::compact
#pragma once

#include <cstdint>
#include <span>

#include "kvmesh/api.h"
#include "kvmesh/mods.hpp"

namespace KVMESH_API kvmesh {
namespace mods {

/// The mask of draft trees, for steps in which a target model verifies several drafts of a sequence
/// at once. The newest tokens of a row are a tree: a token sees the positions before the tree, its
/// ancestors and itself. A row without a tree is causal. The trees are data: one mask, and so one
/// compiled kernel, serves all steps. Copies share their trees.
class DraftTrees {
 public:
  /// Makes trees for batches of up to `rows` rows, each of up to `most_tokens` tokens.
  /// @throws InvalidArgument if a number is below 1, or there are 2^31 tokens.
  DraftTrees(int rows, int most_tokens);

  /// Gives row `row` of the batch a tree at the positions [first, first + parents.size()), which
  /// are its last: token i's parent is token parents[i], which is before it; -1: the token before
  /// the tree. Call it only between steps, as Buffer::set.
  /// @throws InvalidArgument, with nothing changed.
  void set(int row, std::int64_t first, std::span<const std::int32_t> parents);
  /// Takes the row's tree away. @throws InvalidArgument.
  void clear(int row);

  const MaskMod& mask() const { return mask_; }

 private:
  void check_row(int row) const;

  int rows_, most_;
  Buffer<std::int32_t> first_;          // [rows] position of the tree
  Buffer<std::int32_t> enter_, leave_;  // [rows, most_tokens]: see tree_mask
  MaskMod mask_;
};

}  // namespace mods
}  // namespace kvmesh
