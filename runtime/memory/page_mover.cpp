#include "runtime/memory/page_mover.hpp"

#include <utility>

#include "core/tensors/copy_rows.hpp"

namespace kvmesh {
namespace {

std::size_t row_bytes(const PagePlane& plane, int tokens) {
  return static_cast<std::size_t>(tokens) * static_cast<std::size_t>(plane.elements) *
         size_bytes(plane.dtype);
}

RowPlace place_in(const TensorView& plane, std::int32_t page, int token) {
  const auto element = static_cast<std::int64_t>(size_bytes(plane.dtype));
  auto* const data = static_cast<std::byte*>(plane.data);
  return {data + (page * plane.stride(0) + token * plane.stride(2)) * element,
          static_cast<std::size_t>(plane.stride(1) * element)};
}

}  // namespace

std::size_t PageMover::bytes(std::span<const int> layers, int tokens) const {
  std::size_t token = 0;
  for (const PagePlane& plane : group_.format.planes) token += row_bytes(plane, tokens);
  return token * static_cast<std::size_t>(heads()) * layers.size();
}

void PageMover::move(std::span<const int> layers, std::span<const PageMove> moves,
                     const MoveEnd& from, const MoveEnd& to) const {
  const PageFormat& format = group_.format;
  for (const PageMove& move : moves) {
    for (const int layer : layers) {
      for (std::size_t plane = 0; plane < format.planes.size(); ++plane) {
        const std::size_t width = row_bytes(format.planes[plane], move.tokens);
        const RowPlace source = from(layer, plane, move, width);
        const RowPlace destination = to(layer, plane, move, width);
        copy_rows({destination.data, destination.pitch, source.data, source.pitch, width,
                   static_cast<std::size_t>(heads())},
                  mine_.layout().device());
      }
    }
  }
}

MoveEnd PageMover::sources(const PlanesOf& planes) {
  return [planes](int layer, std::size_t plane, const PageMove& move, std::size_t) {
    return place_in(planes(layer)[plane], move.source, move.source_token);
  };
}

MoveEnd PageMover::destinations(const PlanesOf& planes) {
  return [planes](int layer, std::size_t plane, const PageMove& move, std::size_t) {
    return place_in(planes(layer)[plane], move.destination, move.destination_token);
  };
}

MoveEnd PageMover::packed(std::byte* buffer) const {
  return [next = buffer, heads = static_cast<std::size_t>(heads())](
             int, std::size_t, const PageMove&, std::size_t width) mutable {
    return RowPlace{std::exchange(next, next + width * heads), width};
  };
}

}  // namespace kvmesh
