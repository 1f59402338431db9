#include "runtime/tiers/page_packer.hpp"

#include <cstring>

#include "core/cuda/memory.hpp"

namespace kvmesh {
namespace {

std::size_t bytes_of_page(const TensorView& plane) {
  return static_cast<std::size_t>(plane.stride(0)) * size_bytes(plane.dtype);
}

}  // namespace

PagePacker::PagePacker(const PoolStorage& pools) : pools_(pools), stream_(nullptr, nullptr) {
  for (int layer = 0; layer < pools.layers(); ++layer)
    for (const TensorView& plane : pools.layer(layer)) page_bytes_ += bytes_of_page(plane);
  const Device device = pools.layout().device();
  if (device.kind == DeviceKind::kCuda) stream_ = cuda_memory::make_stream(device.index);
}

PagePacker::~PagePacker() = default;

void PagePacker::copy(std::int32_t page, std::byte* image, bool packs) const {
  for (int layer = 0; layer < pools_.layers(); ++layer) {
    for (const TensorView& plane : pools_.layer(layer)) {
      const std::size_t bytes = bytes_of_page(plane);
      std::byte* const place =
          static_cast<std::byte*>(plane.data) + static_cast<std::size_t>(page) * bytes;
      std::byte* const to = packs ? image : place;
      const std::byte* const from = packs ? place : image;
      if (stream_) {
        cuda_memory::copy_bytes_on(to, from, bytes, {stream_.get()});
      } else {
        std::memcpy(to, from, bytes);
      }
      image += bytes;
    }
  }
  if (stream_) cuda_memory::wait_for_stream({stream_.get()});
}

}  // namespace kvmesh
