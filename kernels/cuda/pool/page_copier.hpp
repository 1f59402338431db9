// Moves pages on one device, in one launch for all planes.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <vector>

#include "core/cuda/device_buffer.hpp"
#include "kernels/cuda/common/upload.hpp"
#include "kernels/cuda/pool/page_rows.hpp"

namespace kvmesh::cuda {

/// Keeps its memory. One thread at a time; calls on one stream after another.
///
/// Moves between pools are one launch. Rows in host memory go by way of a buffer on the device: a
/// launch packs as many pages as fit, and each stretch of host memory is one copy. A page of many
/// layers is thus a copy of megabytes, at the link's rate, where its planes are 32 KiB each (8
/// heads, 16 tokens, dim 128, 16 bits).
class PageCopier {
 public:
  /// A buffer of 16 MiB takes 0.3 ms at 55 GB/s, of which the launches beside it take 3 %.
  static constexpr std::size_t kBufferBytes = std::size_t{16} << 20;

  /// Whether the next call would go on without waiting for the device to take an earlier one's
  /// lists.
  bool is_ready() const { return lists_[next_].is_taken(); }
  /// REQUIRES: the pools are on this device or mapped; host memory stays until the stream is done.
  void move(const PageMoves& moves, cudaStream_t stream);

 private:
  void move_packed(const PageMoves& moves, PageRowsParams params, cudaStream_t stream);
  std::size_t place(const PageMoves& moves);

  std::array<Upload, 4> lists_;  // as many calls as may be on their way
  std::size_t next_ = 0;
  std::vector<PlacedMove> placed_;
  DeviceArray<std::byte> buffer_;
};

}  // namespace kvmesh::cuda
