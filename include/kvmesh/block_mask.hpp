// Block masks: which tiles of (queries x keys) are empty, partly visible or fully visible.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/mods.hpp"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

/// The sizes of a block mask. With a `batch` (or `heads`) of 1, the one row (or head) applies to
/// all.
struct BlockMaskShape {
  std::int64_t batch = 1;
  std::int64_t heads = 1;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  int q_block = 128;
  int kv_block = 128;
  /// Position of each batch row's first query; empty means 0 for all.
  std::vector<std::int32_t> q_start{};

  std::int64_t q_blocks() const { return (q_len + q_block - 1) / q_block; }
  std::int64_t kv_blocks() const { return (kv_len + kv_block - 1) / kv_block; }
};

/// The kv blocks that one q block visits: logical indices, ascending. All other kv blocks are
/// empty.
struct BlockRow {
  std::vector<std::int32_t> partial;  ///< the mask is evaluated for each pair
  std::vector<std::int32_t> full;     ///< every pair is visible
};
struct BlockRowView {
  std::span<const std::int32_t> partial;
  std::span<const std::int32_t> full;
};

/// The tiles that attention under a mask mod must visit, per batch row, head and q block. `create`
/// is exact: it lists a tile only if a pair in it is visible, and as full only if all its pairs
/// are. A shorter tile at the end counts as full if all positions that exist are visible, since
/// kernels bound the keys by the sequence's length anyway.
class BlockMask {
 public:
  /// Evaluates `mask_mod` over the whole shape.
  /// @throws InvalidArgument if a length, count or block is below 1 or does not fit in int32, or if
  /// the size of `q_start` is not `batch`.
  static BlockMask create(const MaskMod& mask_mod, const BlockMaskShape& shape);

  /// Makes a block mask from the caller's lists, batch-major: row (b * heads + h) * q_blocks +
  /// q_block. A list may be in any order. `mask_mod` is applied in partial blocks.
  /// @throws InvalidArgument if the number of rows is wrong, or a block does not exist or appears
  /// twice in a row.
  static BlockMask from_lists(const BlockMaskShape& shape, std::span<const BlockRow> rows,
                              const MaskMod& mask_mod = {});

  const BlockMaskShape& shape() const { return shape_; }
  const MaskMod& mask_mod() const { return mask_mod_; }

  /// The kv blocks of a q block. With a `batch` or `heads` of 1, any b or h is valid.
  /// @throws InvalidArgument if the row does not exist.
  BlockRowView row(std::int64_t b, std::int64_t h, std::int64_t q_block) const;

  /// The share of tiles that are not visited, 0 to 1.
  double sparsity() const;

  /// A picture of the first batch row and head (' ' empty, '+' partial, '#' full) with a headline.
  std::string to_string() const;

 private:
  BlockMask(const MaskMod& mask_mod, const BlockMaskShape& shape);
  void add_row(const BlockRow& row);
  BlockRow copy_row(std::int64_t b, std::int64_t h, std::int64_t q_block) const;

  MaskMod mask_mod_;
  BlockMaskShape shape_;
  std::vector<std::int64_t> partial_ends_, full_ends_;  ///< per row: where its entries end
  std::vector<std::int32_t> partial_, full_;
};

/// A page of this rank that a q block visits.
struct LocalBlock {
  std::int32_t page = 0;     ///< index in this rank's pool
  std::int32_t logical = 0;  ///< kv block: position / page size
  bool full = false;         ///< visited without the mask
  friend bool operator==(const LocalBlock&, const LocalBlock&) = default;
};

/// One rank's share of a block mask, in physical pages.
class LocalBlockMask {
 public:
  LocalBlockMask(std::int64_t batch, std::int64_t heads, std::int64_t q_blocks, int q_block)
      : batch_(batch), heads_(heads), q_blocks_(q_blocks), q_block_(q_block) {}

  std::int64_t batch() const { return batch_; }
  std::int64_t heads() const { return heads_; }
  std::int64_t q_blocks() const { return q_blocks_; }
  /// Queries per q block.
  int q_block() const { return q_block_; }

  /// The local pages to visit, in ascending logical order. With `heads` of 1, any h is valid.
  /// @throws InvalidArgument if the row does not exist.
  std::span<const LocalBlock> row(std::int64_t b, std::int64_t h, std::int64_t q_block) const;

  /// Appends a row. Rows come in the order b, h, q_block.
  void add_row(std::span<const LocalBlock> blocks);

 private:
  std::int64_t batch_, heads_, q_blocks_;
  int q_block_;
  std::vector<std::int64_t> ends_;
  std::vector<LocalBlock> blocks_;
};

/// Returns the pages of rank `me` that the mask visits. `page_tables` has one table (in logical
/// order) per batch row; a mask with a `batch` of 1 applies to any number of tables. Leaves out
/// blocks whose page is on another rank. Also leaves out blocks past the end of a row's table,
/// which hold no keys: rows may be shorter than the mask.
/// @throws InvalidArgument if the mask's kv_block is not `page_size`, the number of tables is not
/// the mask's batch, or a table has an invalid page that the mask visits.
LocalBlockMask convert_to_local(const BlockMask& mask,
                                std::span<const std::span<const PageId>> page_tables, int page_size,
                                PageRank me);

}  // namespace kvmesh
