#include "runtime/memory/pool_storage.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

// What the widest loads of any kernel ask for, and cudaMalloc gives.
constexpr std::int64_t kAlignment = 256;

std::int64_t half_bytes(std::int64_t elements, Dtype dtype) {
  const std::int64_t bytes = elements * static_cast<std::int64_t>(size_bytes(dtype));
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

PoolLayout::PoolLayout(const LocalShape& shape, int layers, Device device)
    : shape_(shape),
      layers_(layers),
      device_(device),
      k_bytes_(half_bytes(shape.k_elements(), shape.dtype)),
      v_bytes_(half_bytes(shape.v_elements(), shape.dtype)) {}

KvPool PoolLayout::layer(void* block, int layer) const {
  const AttentionShape& a = shape_.attention;
  auto* const k = static_cast<std::byte*>(block) + layer * (k_bytes_ + v_bytes_);
  const auto half = [&](std::byte* data, int dim) {
    return TensorView(data, shape_.dtype, {shape_.pages, a.kv_heads, a.page_size, dim}, device_);
  };
  return {half(k, a.k_dim), half(k + k_bytes_, a.v_dim)};
}

std::int64_t pages_within(std::int64_t bytes, LocalShape shape, int layers, Device device) {
  const auto granule = static_cast<std::int64_t>(SharedMemory::granule(device));
  const std::int64_t room = bytes / granule * granule;
  const auto size = [&](std::int64_t pages) {
    shape.pages = pages;
    return PoolLayout(shape, layers, device).size_bytes();
  };
  // Alignment adds up to 255 bytes to each half of a layer: start without, and give pages back.
  shape.pages = 1;
  const std::int64_t page = layers * (shape.k_elements() + shape.v_elements()) *
                            static_cast<std::int64_t>(size_bytes(shape.dtype));
  std::int64_t pages = std::min<std::int64_t>(room / page, PageId::kMaxPagesPerRank);
  while (pages > 0 && size(pages) > room) --pages;
  return pages;
}

PoolStorage::PoolStorage(const LocalShape& shape, int layers, Device device, Sharing sharing)
    : layout_(shape, layers, device),
      memory_(std::make_unique<SharedMemory>(device, static_cast<std::size_t>(layout_.size_bytes()),
                                             sharing)) {}

}  // namespace kvmesh
