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

std::int64_t plane_bytes(const PageFormat& format, const PagePlane& plane, std::int64_t pages) {
  return checked_product(kWhat, {pages, format.heads, format.page_size, plane.elements,
                                 static_cast<std::int64_t>(size_bytes(plane.dtype))});
}

}  // namespace

PoolLayout::PoolLayout(const PageFormat& format, std::int64_t pages, int layers, Device device)
    : format_(format), pages_(pages), layers_(layers), device_(device) {
  for (const PagePlane& plane : format.planes) {
    offsets_.push_back(layer_bytes_);
    layer_bytes_ = checked_sum(kWhat, {layer_bytes_, aligned(plane_bytes(format, plane, pages))});
  }
  size_bytes_ = checked_product(kWhat, {layers, layer_bytes_});
}

PagePlanes PoolLayout::layer(void* block, int layer) const {
  auto* const first = static_cast<std::byte*>(block) + layer * layer_bytes_;
  PagePlanes planes;
  for (std::size_t i = 0; i < format_.planes.size(); ++i) {
    const PagePlane& plane = format_.planes[i];
    planes.push_back({first + offsets_[i],
                      plane.dtype,
                      {pages_, format_.heads, format_.page_size, plane.elements},
                      device_});
  }
  return planes;
}

std::int64_t pages_within(std::int64_t bytes, const PageFormat& format, int layers, Device device) {
  const auto granule = static_cast<std::int64_t>(SharedMemory::granule(device));
  const std::int64_t room = bytes / granule * granule;
  // Alignment adds up to 255 bytes to each plane of a layer: start without it, then reduce the
  // number of pages.
  std::int64_t page = 0;
  for (const PagePlane& plane : format.planes) {
    page = checked_sum(kWhat, {page, plane_bytes(format, plane, 1)});
  }
  page = checked_product(kWhat, {layers, page});
  std::int64_t pages = std::min<std::int64_t>(room / page, PageId::kMaxPagesPerRank);
  while (pages > 0 && PoolLayout(format, pages, layers, device).size_bytes() > room) --pages;
  return pages;
}

PoolStorage::PoolStorage(const PageFormat& format, std::int64_t pages, int layers, Device device,
                         Sharing sharing)
    : layout_(format, pages, layers, device),
      memory_(std::make_unique<SharedMemory>(device, static_cast<std::size_t>(layout_.size_bytes()),
                                             sharing)) {}

}  // namespace kvmesh
