#include "runtime/memory/pool_storage.hpp"

#include <utility>

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

std::int64_t scale_bytes(const PoolGroup& group) {
  return checked_product(kWhat, {group.head_scales, static_cast<std::int64_t>(sizeof(float))});
}

}  // namespace

PoolLayout::PoolLayout(std::vector<PoolGroup> groups, Device device)
    : groups_(std::move(groups)), device_(device) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const PoolGroup& group = groups_[g];
    offsets_.emplace_back();
    std::int64_t layer_bytes = 0;
    for (const PagePlane& plane : group.format.planes) {
      offsets_.back().push_back(layer_bytes);
      layer_bytes =
          checked_sum(kWhat, {layer_bytes, aligned(plane_bytes(group.format, plane, group.pages))});
    }
    for (const int layer : group.layers) {
      const auto at = static_cast<std::size_t>(layer);
      if (at >= layers_.size()) layers_.resize(at + 1);
      layers_[at] = {.group = g, .offset = size_bytes_};
      size_bytes_ = checked_sum(kWhat, {size_bytes_, layer_bytes});
    }
    scale_offsets_.push_back(size_bytes_);
    size_bytes_ = checked_sum(kWhat, {size_bytes_, aligned(scale_bytes(group))});
  }
}

PagePlanes PoolLayout::layer(void* block, int layer) const {
  const Layer& at = layers_[static_cast<std::size_t>(layer)];
  const PoolGroup& group = groups_[at.group];
  auto* const first = static_cast<std::byte*>(block) + at.offset;
  PagePlanes planes;
  for (std::size_t i = 0; i < group.format.planes.size(); ++i) {
    const PagePlane& plane = group.format.planes[i];
    planes.push_back({first + offsets_[at.group][i],
                      plane.dtype,
                      {group.pages, group.format.heads, group.format.page_size, plane.elements},
                      device_});
  }
  return planes;
}

TensorView PoolLayout::head_scales(void* block, std::size_t group) const {
  const PoolGroup& of = groups_[group];
  if (of.head_scales == 0) return {};
  return {static_cast<std::byte*>(block) + scale_offsets_[group],
          Dtype::kFloat32,
          {of.head_scales / of.format.heads, of.format.heads},
          device_};
}

std::vector<ByteRange> PoolLayout::bytes_of(std::span<const std::int64_t> pages) const {
  std::vector<ByteRange> bytes;
  for (const Layer& layer : layers_) {
    const PoolGroup& group = groups_[layer.group];
    for (std::size_t i = 0; i < group.format.planes.size(); ++i) {
      const std::int64_t first = layer.offset + offsets_[layer.group][i];
      const std::int64_t last =
          first + plane_bytes(group.format, group.format.planes[i], pages[layer.group]);
      bytes.push_back({static_cast<std::size_t>(first), static_cast<std::size_t>(last)});
    }
  }
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const auto first = static_cast<std::size_t>(scale_offsets_[g]);
    const auto size = static_cast<std::size_t>(scale_bytes(groups_[g]));
    if (size > 0) bytes.push_back({first, first + size});
  }
  return bytes;
}

PoolStorage::PoolStorage(PoolLayout layout, Device device, Sharing sharing)
    : layout_(std::move(layout)),
      memory_(std::make_unique<SharedMemory>(device, static_cast<std::size_t>(layout_.size_bytes()),
                                             sharing)) {}

PoolStorage::PoolStorage(PoolLayout layout, Device device, Sharing sharing,
                         std::span<const std::int64_t> pages)
    : layout_(std::move(layout)),
      memory_(std::make_unique<SharedMemory>(device, static_cast<std::size_t>(layout_.size_bytes()),
                                             sharing, layout_.bytes_of(pages))) {}

}  // namespace kvmesh
