// Memory that grows while a device may still use it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace kvmesh {

/// A block that is replaced by a larger one when it gets too small. `Block` owns memory and has
/// data() and size_bytes(); a default one is empty.
///
/// Blocks that were outgrown are kept: to free memory of a GPU waits for all of its work, and that
/// work may itself wait for a peer that has died. Together they are smaller than the current one.
template <class Block>
class GrowingBlock {
 public:
  void* data() const { return block_.data(); }
  /// Bytes that can be used.
  std::size_t capacity_bytes() const { return block_.size_bytes(); }
  /// Bytes held, with the blocks that were outgrown.
  std::size_t size_bytes() const {
    std::size_t bytes = block_.size_bytes();
    for (const Block& block : outgrown_) bytes += block.size_bytes();
    return bytes;
  }

  /// Makes room for `bytes`: calls `make(size)` for a block of exactly as many the first time,
  /// later of at least twice the capacity. Returns true if the memory moved; the contents are then
  /// lost. Frees the old block at once unless `keeps`.
  template <class Make>
  bool reserve(std::size_t bytes, const Make& make, bool keeps = true) {
    if (bytes <= capacity_bytes()) return false;
    Block larger = make(std::max(bytes, 2 * capacity_bytes()));
    if (keeps && capacity_bytes() > 0) outgrown_.push_back(std::move(block_));
    block_ = std::move(larger);
    return true;
  }

 private:
  Block block_;
  std::vector<Block> outgrown_;
};

}  // namespace kvmesh
