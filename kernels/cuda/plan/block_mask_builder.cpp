#include "kernels/cuda/plan/block_mask_builder.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/check.hpp"
#include "core/cuda/device_array.hpp"
#include "kernels/block_mask_shape.hpp"
#include "kernels/cuda/plan/classifier.hpp"
#include "kernels/cuda/plan/kernels.hpp"

namespace kvmesh::cuda {
namespace {

std::int32_t to_int32(std::int64_t value) { return static_cast<std::int32_t>(value); }

/// The mask in a plan's terms: a batch row is a sequence, a q block of a head a query block, and
/// the kv blocks are the pages of every sequence.
class Builder {
 public:
  explicit Builder(const BlockMaskShape& shape) : shape_(shape) {
    const std::int64_t tiles = shape.batch * shape.heads * shape.q_blocks() * shape.kv_blocks();
    require(tiles < std::numeric_limits<std::int32_t>::max(),
            "a block mask of {} tiles is more than the device makes at a time", tiles);
    require(std::int64_t{shape.q_block} * shape.kv_block < std::numeric_limits<std::int32_t>::max(),
            "a block mask with tiles of {} x {} is more than the device makes", shape.q_block,
            shape.kv_block);
    for (std::int64_t kv = 0; kv < shape.kv_blocks(); ++kv) {
      pages_.push_back({to_int32(kv), to_int32(kv)});
    }
    for (std::int64_t b = 0; b < shape.batch; ++b) add_row(b);
  }

  /// Calls `add(row, kv_block)` for all tiles of a class.
  template <class Add>
  void for_tiles(TileClass tile_class, const Add& add) const {
    const std::vector<std::int32_t> tiles = select(tile_class);
    const auto kv_blocks = to_int32(shape_.kv_blocks());
    for (std::int32_t tile : tiles) {
      add(static_cast<std::size_t>(tile / kv_blocks), tile % kv_blocks);
    }
  }

  void classify(KernelStore& kernels, const MaskMod& mask) {
    DeviceMods mods(ScoreMod().graph(), mask.graph());
    mods.send(kStream);
    const DeviceBuffer sequences = upload(std::span<const PlanSequence>(sequences_));
    const DeviceBuffer query_blocks = upload(std::span<const QueryBlock>(query_blocks_));
    const DeviceBuffer pages = upload(std::span<const LocalPage>(pages_));
    const DeviceBuffer positions = upload(std::span<const std::int32_t>(positions_));
    classes_.reserve(static_cast<std::size_t>(tiles()));
    const PlanCandidates candidates{.sequences = sequences.as<PlanSequence>(),
                                    .query_blocks = query_blocks.as<QueryBlock>(),
                                    .pages = pages.as<LocalPage>(),
                                    .q_positions = positions.as<std::int32_t>(),
                                    .classes = classes_.data(),
                                    .sequence_count = to_int32(std::ssize(sequences_)),
                                    .query_block_count = to_int32(std::ssize(query_blocks_)),
                                    .candidate_count = tiles(),
                                    .page_size = shape_.kv_block,
                                    .group = 1,
                                    .first_head = 0};
    Classifier(kernels, mods, {.page_size = shape_.kv_block, .per_head = true})
        .classify(candidates, shape_.q_block, kStream);
    check(cudaStreamSynchronize(kStream), "making a block mask");
  }

 private:
  static constexpr cudaStream_t kStream = nullptr;

  std::int32_t tiles() const { return to_int32(std::ssize(query_blocks_) * shape_.kv_blocks()); }

  void add_row(std::int64_t b) {
    sequences_.push_back({.first_page = 0,
                          .pages = to_int32(shape_.kv_blocks()),
                          .first_token = to_int32(b * shape_.q_len),
                          .queries = to_int32(shape_.q_len),
                          .kv_len = to_int32(shape_.kv_len),
                          .first_token_slot = 0,
                          .appended = 0,
                          .counts_sinks = 0});
    for (std::int64_t q = 0; q < shape_.q_len; ++q) {
      positions_.push_back(to_int32(q_start(shape_, b) + q));
    }
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      for (std::int64_t block = 0; block < shape_.q_blocks(); ++block) {
        const std::int64_t first = block * shape_.q_block;
        query_blocks_.push_back(
            {.sequence = to_int32(b),
             .first_token = to_int32(b * shape_.q_len + first),
             .tokens = to_int32(std::min<std::int64_t>(shape_.q_block, shape_.q_len - first)),
             .kv_head = to_int32(h),
             .q_block = to_int32(block),
             .first_candidate = to_int32(std::ssize(query_blocks_) * shape_.kv_blocks()),
             .shared_block = -1,
             .shared_token = 0});
      }
    }
  }

  std::vector<std::int32_t> select(TileClass tile_class) const {
    const DeviceBuffer selected(static_cast<std::size_t>(tiles()) * sizeof(std::int32_t));
    const DeviceBuffer count(sizeof(std::int32_t));
    const DeviceBuffer scratch(select_scratch_bytes(tiles()));
    check(launch_select(classes_.data(), tiles(), tile_class, selected.as<std::int32_t>(),
                        count.as<std::int32_t>(), scratch.data(), scratch.size_bytes(), kStream),
          "listing a block mask");
    std::int32_t size = 0;
    check(cudaMemcpy(&size, count.data(), sizeof(size), cudaMemcpyDeviceToHost),
          "listing a block mask");
    std::vector<std::int32_t> tiles(static_cast<std::size_t>(size));
    check(cudaMemcpy(tiles.data(), selected.data(), tiles.size() * sizeof(std::int32_t),
                     cudaMemcpyDeviceToHost),
          "listing a block mask");
    return tiles;
  }

  const BlockMaskShape& shape_;
  std::vector<PlanSequence> sequences_;
  std::vector<QueryBlock> query_blocks_;
  std::vector<LocalPage> pages_;
  std::vector<std::int32_t> positions_;
  DeviceArray<TileClass> classes_;
};

}  // namespace

BlockMask make_block_mask(KernelStore& kernels, const MaskMod& mask, const BlockMaskShape& shape) {
  check_block_mask_shape(shape);
  Builder builder(shape);
  builder.classify(kernels, mask);
  std::vector<BlockRow> rows(
      static_cast<std::size_t>(shape.batch * shape.heads * shape.q_blocks()));
  builder.for_tiles(TileClass::kPartial,
                    [&](std::size_t row, std::int32_t kv) { rows[row].partial.push_back(kv); });
  builder.for_tiles(TileClass::kFull,
                    [&](std::size_t row, std::int32_t kv) { rows[row].full.push_back(kv); });
  return BlockMask::from_lists(shape, rows, mask);
}

}  // namespace kvmesh::cuda
