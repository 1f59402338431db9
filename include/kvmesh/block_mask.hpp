// Block masks: which tiles of (queries x keys) are empty, partly visible or fully visible.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/mods.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// `batch` and `heads` may be 1: then the one row (or head) stands for all.
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

/// The kv blocks that one q block visits, by logical index, ascending. All others are empty.
struct BlockRow {
  std::vector<std::int32_t> partial;  ///< the mask decides pair by pair
  std::vector<std::int32_t> full;     ///< every pair is visible
};
struct BlockRowView {
  std::span<const std::int32_t> partial;
  std::span<const std::int32_t> full;
};

/// The tiles that attention under a mask mod must visit, per batch row, head and q block. Exact: a
/// tile is listed only if a pair in it is visible, and as full only if all pairs are. A tile at the
/// end, shorter than the others, is judged on the positions that exist: as full if they are all
/// visible (a kernel bounds its keys by the sequence's length anyway).
class BlockMask {
 public:
  /// @throws InvalidArgument on a shape with a length, count or block below 1, past int32, or
  /// with `q_start` of another size than `batch`.
  static BlockMask create(const MaskMod& mask_mod, const BlockMaskShape& shape);

  /// From the user's own lists, batch-major: row (b * heads + h) * q_blocks + q_block, each in any
  /// order. `mask_mod` is what partial blocks are masked with.
  /// @throws InvalidArgument if the number of rows is wrong, or a block does not exist or is twice
  /// in a row.
  static BlockMask from_lists(const BlockMaskShape& shape, std::span<const BlockRow> rows,
                              const MaskMod& mask_mod = {});

  const BlockMaskShape& shape() const { return shape_; }
  const MaskMod& mask_mod() const { return mask_mod_; }

  /// @throws InvalidArgument if it is outside; a `batch` or `heads` of 1 takes any b or h.
  BlockRowView row(std::int64_t b, std::int64_t h, std::int64_t q_block) const;

  /// The share of tiles that need not be visited, 0 to 1.
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
  /// Queries a q block.
  int q_block() const { return q_block_; }

  /// The local pages to visit, in ascending logical order. `heads` of 1 takes any h.
  /// @throws InvalidArgument if it is outside.
  std::span<const LocalBlock> row(std::int64_t b, std::int64_t h, std::int64_t q_block) const;

  /// Rows are added in the order b, h, q_block.
  void add_row(std::span<const LocalBlock> blocks);

 private:
  std::int64_t batch_, heads_, q_blocks_;
  int q_block_;
  std::vector<std::int64_t> ends_;
  std::vector<LocalBlock> blocks_;
};

/// What rank `me` visits. `page_tables` has one table (logical order) a batch row; a mask with a
/// `batch` of 1 serves any number of them. Blocks whose page another rank holds are left to it;
/// blocks past the end of a row's table hold no keys and are dropped: rows may be shorter than the
/// mask. @throws InvalidArgument if the mask's kv_block is not `page_size`, the number of tables is
/// not the mask's batch, or a table has an invalid page that the mask visits.
LocalBlockMask convert_to_local(const BlockMask& mask,
                                std::span<const std::span<const PageId>> page_tables, int page_size,
                                Rank me);

}  // namespace kvmesh
