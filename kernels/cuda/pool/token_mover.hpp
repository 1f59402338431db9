// Copies tokens of all layers on one device, between pages or to and from the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <vector>

#include "core/cuda/device_array.hpp"
#include "kernels/cuda/common/upload.hpp"
#include "kernels/cuda/pool/token_rows.hpp"
#include "kernels/token_rows.hpp"

namespace kvmesh::cuda {

/// Keeps its memory. One thread at a time; calls on one stream after another. The tokens lie in
/// the planes: they are not checked here.
class TokenMover {
 public:
  /// Whether the next call would go on without waiting for the device to take the last one's lists.
  bool is_ready() const { return uploads_[0].is_taken() && uploads_[1].is_taken(); }
  /// The tokens `from` become the tokens `to`; the two may overlap. Runs on the stream.
  void move(const TokenPlanes& planes, std::span<const TokenSlot> from,
            std::span<const TokenSlot> to, cudaStream_t stream);
  /// Starts the copies between the tokens and `packed` [slots, token_bytes], in host memory that
  /// must stay until the stream is done.
  void pack(const TokenPlanes& planes, std::span<const TokenSlot> slots, std::byte* packed,
            cudaStream_t stream);
  void unpack(const TokenPlanes& planes, std::span<const TokenSlot> slots, const std::byte* packed,
              cudaStream_t stream);

 private:
  void copy(const TokenPlanes& planes, std::span<const TokenSlot> slots, bool is_packing,
            cudaStream_t stream);

  Upload uploads_[2];  // of copies to `packed_` and from it: a move need not wait for itself
  DeviceArray<std::byte> packed_;
  std::vector<PlaneRows> rows_;
};

}  // namespace kvmesh::cuda
