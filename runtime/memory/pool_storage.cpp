#include "runtime/memory/pool_storage.hpp"

#include <algorithm>

#include "core/checked.hpp"

namespace kvmesh {
namespace {

// The alignment that the widest loads of any kernel need, and that cudaMalloc provides.
constexpr std::int64_t kAlignment = 256;

constexpr std::string_view kWhat = "cache: bytes of pools";

std::int64_t aligned(std::int64_t bytes) {
  return checked_sum(kWhat, {bytes, kAlignment - 1}) / kAlignment * kAlignment;
}

}  // namespace

std::int64_t LocalShape::half_bytes(int dim) const {
  return checked_product(kWhat, {pages, attention.kv_heads, attention.page_size, dim,
                                 static_cast<std::int64_t>(size_bytes(dtype))});
}

PoolLayout::PoolLayout(const LocalShape& shape, int layers, Device device)
    : shape_(shape),
      layers_(layers),
      device_(device),
      k_bytes_(aligned(shape.half_bytes(shape.attention.k_dim))),
      v_bytes_(aligned(shape.half_bytes(shape.attention.v_dim))),
      size_bytes_(checked_product(kWhat, {layers, checked_sum(kWhat, {k_bytes_, v_bytes_})})) {}

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
  // Alignment adds up to 255 bytes to each half of a layer: start without it, then reduce the
  // number of pages.
  shape.pages = 1;
  const std::int64_t page = checked_product(
      kWhat, {layers, checked_sum(kWhat, {shape.half_bytes(shape.attention.k_dim),
                                          shape.half_bytes(shape.attention.v_dim)})});
  std::int64_t pages = std::min<std::int64_t>(room / page, PageId::kMaxPagesPerRank);
  while (pages > 0 && size(pages) > room) --pages;
  return pages;
}

PoolStorage::PoolStorage(const LocalShape& shape, int layers, Device device, Sharing sharing)
    : layout_(shape, layers, device),
      memory_(std::make_unique<SharedMemory>(device, static_cast<std::size_t>(layout_.size_bytes()),
                                             sharing)) {}

}  // namespace kvmesh
