#include "kvmesh/block_mask.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/checked.hpp"
#include "kernels/block_mask_shape.hpp"

namespace kvmesh {
namespace {

constexpr std::int64_t kMaxPosition = std::numeric_limits<std::int32_t>::max();

void check_row(const BlockRow& row, std::size_t index, std::int64_t kv_blocks) {
  std::vector<std::int32_t> all = row.partial;
  all.insert(all.end(), row.full.begin(), row.full.end());
  std::ranges::sort(all);
  for (std::int32_t block : all) {
    require(block >= 0 && block < kv_blocks, "row {} of a block mask lists kv block {} of {}",
            index, block, kv_blocks);
  }
  const auto twice = std::ranges::adjacent_find(all);
  require(twice == all.end(), "row {} of a block mask lists kv block {} twice", index,
          twice == all.end() ? 0 : *twice);
}

void check_index(std::int64_t index, std::int64_t count, std::string_view what) {
  require(index >= 0 && index < count, "{} {} of a block mask that has {}", what, index, count);
}

std::int64_t row_index(std::int64_t b, std::int64_t h, std::int64_t q_block, std::int64_t batch,
                       std::int64_t heads, std::int64_t q_blocks) {
  if (batch == 1) b = 0;
  if (heads == 1) h = 0;
  check_index(b, batch, "batch row");
  check_index(h, heads, "head");
  check_index(q_block, q_blocks, "q block");
  return (b * heads + h) * q_blocks + q_block;
}

template <class T>
std::span<const T> slice(const std::vector<T>& values, const std::vector<std::int64_t>& ends,
                         std::size_t index) {
  const std::int64_t begin = index == 0 ? 0 : ends[index - 1];
  return std::span(values).subspan(static_cast<std::size_t>(begin),
                                   static_cast<std::size_t>(ends[index] - begin));
}

/// Returns the blocks of `row` whose pages `me` holds.
std::vector<LocalBlock> local_blocks(const BlockRowView& row, std::span<const PageId> table,
                                     std::int64_t b, PageRank me) {
  std::vector<LocalBlock> blocks;
  const auto add = [&](std::int32_t logical, bool full) {
    if (static_cast<std::size_t>(logical) >= table.size()) return;
    const PageId page = table[static_cast<std::size_t>(logical)];
    require(page.valid(), "batch row {} has no page {}, which the block mask visits", b, logical);
    if (page.rank() == me) blocks.push_back({page.index(), logical, full});
  };
  for (std::int32_t logical : row.partial) add(logical, false);
  for (std::int32_t logical : row.full) add(logical, true);
  std::ranges::sort(blocks, {}, &LocalBlock::logical);
  return blocks;
}

}  // namespace

void check_block_mask_shape(const BlockMaskShape& shape) {
  require(shape.batch >= 1 && shape.heads >= 1, "a block mask for {} batch rows and {} heads",
          shape.batch, shape.heads);
  require(shape.batch <= kMaxPosition && shape.heads <= kMaxPosition,
          "a block mask for {} batch rows and {} heads: their numbers are int32", shape.batch,
          shape.heads);
  require(shape.q_len >= 1 && shape.kv_len >= 1, "a block mask over {} queries and {} keys",
          shape.q_len, shape.kv_len);
  require(shape.q_block >= 1 && shape.kv_block >= 1,
          "a block mask with blocks of {} x {}: both must be at least 1", shape.q_block,
          shape.kv_block);
  require(shape.q_len < kMaxPosition && shape.kv_len < kMaxPosition,
          "a block mask over {} queries and {} keys: positions are int32", shape.q_len,
          shape.kv_len);
  require(shape.q_start.empty() || std::cmp_equal(shape.q_start.size(), shape.batch),
          "a block mask for {} batch rows with {} first query positions", shape.batch,
          shape.q_start.size());
  std::int64_t last_start = 0;
  for (std::int32_t start : shape.q_start) {
    require(start >= 0, "a block mask whose queries start at position {}: it must not be negative",
            start);
    last_start = std::max<std::int64_t>(last_start, start);
  }
  require(shape.q_len + last_start < kMaxPosition,
          "a block mask over {} queries from position {}: positions are int32", shape.q_len,
          last_start);
  checked_product("rows of a block mask", {shape.batch, shape.heads, shape.q_blocks()});
}

BlockMask::BlockMask(const MaskMod& mask_mod, const BlockMaskShape& shape)
    : mask_mod_(mask_mod), shape_(shape) {
  check_block_mask_shape(shape);
}

void BlockMask::add_row(const BlockRow& row) {
  partial_.insert(partial_.end(), row.partial.begin(), row.partial.end());
  full_.insert(full_.end(), row.full.begin(), row.full.end());
  partial_ends_.push_back(static_cast<std::int64_t>(partial_.size()));
  full_ends_.push_back(static_cast<std::int64_t>(full_.size()));
}

BlockRow BlockMask::copy_row(std::int64_t b, std::int64_t h, std::int64_t q_block) const {
  const BlockRowView view = row(b, h, q_block);
  return {{view.partial.begin(), view.partial.end()}, {view.full.begin(), view.full.end()}};
}

BlockMask BlockMask::from_lists(const BlockMaskShape& shape, std::span<const BlockRow> rows,
                                const MaskMod& mask_mod) {
  BlockMask mask(mask_mod, shape);
  const std::int64_t expected = shape.batch * shape.heads * shape.q_blocks();
  require(std::cmp_equal(rows.size(), expected),
          "a block mask of {} batch rows, {} heads and {} q blocks needs {} lists: given {}",
          shape.batch, shape.heads, shape.q_blocks(), expected, rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    check_row(rows[i], i, shape.kv_blocks());
    BlockRow sorted = rows[i];
    std::ranges::sort(sorted.partial);
    std::ranges::sort(sorted.full);
    mask.add_row(sorted);
  }
  return mask;
}

BlockRowView BlockMask::row(std::int64_t b, std::int64_t h, std::int64_t q_block) const {
  const auto index = static_cast<std::size_t>(
      row_index(b, h, q_block, shape_.batch, shape_.heads, shape_.q_blocks()));
  return {slice(partial_, partial_ends_, index), slice(full_, full_ends_, index)};
}

double BlockMask::sparsity() const {
  const auto visited = static_cast<double>(partial_.size() + full_.size());
  const auto rows = static_cast<double>(partial_ends_.size());
  return 1.0 - visited / (rows * static_cast<double>(shape_.kv_blocks()));
}

std::string BlockMask::to_string() const {
  std::string text = fmt::format("block mask {} x {} x {} x {}, blocks {} x {}, {:.1f} % empty\n",
                                 shape_.batch, shape_.heads, shape_.q_len, shape_.kv_len,
                                 shape_.q_block, shape_.kv_block, 100.0 * sparsity());
  for (std::int64_t q = 0; q < shape_.q_blocks(); ++q) {
    std::string line(static_cast<std::size_t>(shape_.kv_blocks()), ' ');
    for (std::int32_t block : row(0, 0, q).partial) line[static_cast<std::size_t>(block)] = '+';
    for (std::int32_t block : row(0, 0, q).full) line[static_cast<std::size_t>(block)] = '#';
    text += line + "\n";
  }
  return text;
}

std::span<const LocalBlock> LocalBlockMask::row(std::int64_t b, std::int64_t h,
                                                std::int64_t q_block) const {
  check_index(b, batch_, "batch row");  // every row has pages of its own: no broadcast
  return slice(blocks_, ends_,
               static_cast<std::size_t>(row_index(b, h, q_block, batch_, heads_, q_blocks_)));
}

void LocalBlockMask::add_row(std::span<const LocalBlock> blocks) {
  blocks_.insert(blocks_.end(), blocks.begin(), blocks.end());
  ends_.push_back(static_cast<std::int64_t>(blocks_.size()));
}

LocalBlockMask convert_to_local(const BlockMask& mask,
                                std::span<const std::span<const PageId>> page_tables, int page_size,
                                PageRank me) {
  const BlockMaskShape& shape = mask.shape();
  require(shape.kv_block == page_size,
          "a block mask with kv blocks of {} cannot be laid over pages of {}: make them equal",
          shape.kv_block, page_size);
  require(shape.batch == 1 || std::cmp_equal(shape.batch, page_tables.size()),
          "a block mask for {} batch rows needs as many page tables, not {}", shape.batch,
          page_tables.size());
  const auto batch = static_cast<std::int64_t>(page_tables.size());
  LocalBlockMask local(batch, shape.heads, shape.q_blocks(), shape.q_block);
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::span<const PageId> table = page_tables[static_cast<std::size_t>(b)];
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
        local.add_row(local_blocks(mask.row(b, h, q), table, b, me));
      }
    }
  }
  return local;
}

}  // namespace kvmesh
