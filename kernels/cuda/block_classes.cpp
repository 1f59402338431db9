#include "kernels/cuda/block_classes.hpp"

#include <algorithm>
#include <limits>

#include "core/check.hpp"
#include "kernels/cuda/plan_kernels.hpp"

namespace kvmesh::cuda {
namespace {

/// A tile's place in the table, and its class, as they are sent.
std::int64_t tile(std::int64_t at, int tile_class) { return at << 2 | tile_class; }

/// Calls `visit(row, b, h, q_block)` for the rows of a table.
template <class Visit>
void for_rows(const ClassTable& table, const Visit& visit) {
  std::int64_t row = 0;
  for (std::int64_t b = 0; b < table.batch; ++b) {
    for (std::int64_t h = 0; h < table.heads; ++h) {
      for (std::int64_t q = 0; q < table.q_blocks; ++q) visit(row++, b, h, q);
    }
  }
}

}  // namespace

BlockClasses::BlockClasses(const BlockMask& mask)
    : q_block_(mask.shape().q_block),
      table_{.classes = nullptr,
             .batch = static_cast<std::int32_t>(mask.shape().batch),
             .heads = static_cast<std::int32_t>(mask.shape().heads),
             .q_blocks = static_cast<std::int32_t>(mask.shape().q_blocks()),
             .kv_blocks = static_cast<std::int32_t>(mask.shape().kv_blocks())} {
  std::vector<std::int64_t> tiles;
  for_rows(table_, [&](std::int64_t row, std::int64_t b, std::int64_t h, std::int64_t q) {
    const BlockRowView blocks = mask.row(b, h, q);
    for (std::int32_t kv : blocks.partial) {
      tiles.push_back(tile(row * table_.kv_blocks + kv, kPartialTile));
    }
    for (std::int32_t kv : blocks.full) {
      tiles.push_back(tile(row * table_.kv_blocks + kv, kFullTile));
    }
  });
  spread(tiles);
}

BlockClasses::BlockClasses(const LocalBlockMask& mask)
    : q_block_(mask.q_block()),
      table_{.classes = nullptr,
             .batch = static_cast<std::int32_t>(mask.batch()),
             .heads = static_cast<std::int32_t>(mask.heads()),
             .q_blocks = static_cast<std::int32_t>(mask.q_blocks()),
             .kv_blocks = 0} {
  for_rows(table_, [&](std::int64_t, std::int64_t b, std::int64_t h, std::int64_t q) {
    const std::span<const LocalBlock> blocks = mask.row(b, h, q);
    if (!blocks.empty()) {
      table_.kv_blocks = std::max(table_.kv_blocks, blocks.back().logical + 1);
    }
  });
  std::vector<std::int64_t> tiles;
  for_rows(table_, [&](std::int64_t row, std::int64_t b, std::int64_t h, std::int64_t q) {
    for (const LocalBlock& block : mask.row(b, h, q)) {
      const std::int64_t at = row * table_.kv_blocks + block.logical;
      tiles.push_back(tile(at, block.full ? kFullTile : kPartialTile));
    }
  });
  spread(tiles);
}

void BlockClasses::spread(std::span<const std::int64_t> tiles) {
  require(std::ssize(tiles) <= std::numeric_limits<std::int32_t>::max(),
          "block mask: {} tiles are more than one mask on a device can have", tiles.size());
  const std::int64_t count =
      std::int64_t{table_.batch} * table_.heads * table_.q_blocks * std::max(table_.kv_blocks, 1);
  classes_.reserve(static_cast<std::size_t>(count));
  table_.classes = classes_.data();
  const cudaStream_t stream = cudaStreamPerThread;
  check(cudaMemsetAsync(classes_.data(), kEmptyTile, classes_.size_bytes(), stream),
        "clearing a block mask");
  const DeviceBuffer sent = upload(tiles);
  check(launch_spread(sent.as<std::int64_t>(), static_cast<int>(tiles.size()), classes_.data(),
                      stream),
        "spreading a block mask");
  check(cudaStreamSynchronize(stream), "spreading a block mask");
}

}  // namespace kvmesh::cuda
