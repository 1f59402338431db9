// A block mask on the device: the class of every tile.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/cuda/device_array.hpp"
#include "kernels/cuda/plan/params.hpp"
#include "kvmesh/block_mask.hpp"

namespace kvmesh::cuda {

/// Made from a mask's lists, which are sent as they are and expanded on the device. A plan looks
/// its pages up in the table, which turns the mask into that of the local pages.
class BlockClasses {
 public:
  explicit BlockClasses(const BlockMask& mask);

  int q_block() const { return q_block_; }
  std::int64_t heads() const { return table_.heads; }
  const ClassTable& table() const { return table_; }
  std::size_t size_bytes() const { return classes_.size_bytes(); }

 private:
  void spread(std::span<const std::int64_t> tiles);

  int q_block_;
  ClassTable table_{};
  DeviceArray<TileClass> classes_;
};

}  // namespace kvmesh::cuda
