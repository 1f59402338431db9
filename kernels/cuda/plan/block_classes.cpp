#include "kernels/cuda/plan/block_classes.hpp"

#include <limits>

#include "core/check.hpp"
#include "kernels/cuda/plan/kernels.hpp"

namespace kvmesh::cuda {
namespace {

/// A tile's index in the table, and its class.
std::int64_t tile(std::int64_t at, TileClass tile_class) {
  return at << 2 | static_cast<std::int64_t>(tile_class);
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
  std::int64_t row_at = 0;
  const auto add_row = [&](const BlockRowView& blocks) {
    for (std::int32_t kv : blocks.partial) tiles.push_back(tile(row_at + kv, TileClass::kPartial));
    for (std::int32_t kv : blocks.full) tiles.push_back(tile(row_at + kv, TileClass::kFull));
    row_at += table_.kv_blocks;
  };
  for (std::int64_t b = 0; b < table_.batch; ++b) {
    for (std::int64_t h = 0; h < table_.heads; ++h) {
      for (std::int64_t q = 0; q < table_.q_blocks; ++q) add_row(mask.row(b, h, q));
    }
  }
  spread(tiles);
}

void BlockClasses::spread(std::span<const std::int64_t> tiles) {
  require(std::ssize(tiles) <= std::numeric_limits<std::int32_t>::max(),
          "block mask: {} tiles are more than one mask on a device can have", tiles.size());
  const std::int64_t count =
      std::int64_t{table_.batch} * table_.heads * table_.q_blocks * table_.kv_blocks;
  classes_.reserve(static_cast<std::size_t>(count));
  table_.classes = classes_.data();
  const cudaStream_t stream = cudaStreamPerThread;
  constexpr int kEmpty = static_cast<int>(TileClass::kEmpty);
  check(cudaMemsetAsync(classes_.data(), kEmpty, classes_.size_bytes(), stream),
        "clearing a block mask");
  const DeviceBuffer sent = upload(tiles);
  check(launch_spread(sent.as<std::int64_t>(), static_cast<int>(tiles.size()), classes_.data(),
                      stream),
        "spreading a block mask");
  check(cudaStreamSynchronize(stream), "spreading a block mask");
}

}  // namespace kvmesh::cuda
