#include "runtime/memory/page_mover.hpp"

#include <utility>

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
  return token * heads() * layers.size();
}

void PageMover::move(std::span<const int> layers, std::span<const PageMove> moves,
                     const MoveEnd& from, const MoveEnd& to, const DeviceMoves& device) const {
  if (moves.empty()) return;
  std::byte* const host = from.packed != nullptr ? from.packed : to.packed;
  std::vector<std::byte*> packed;
  if (host != nullptr) packed = places(layers, moves, host);
  const std::vector<MovedPlane> of_layers = planes(layers, from, to);
  PageMoves all = moves_of(of_layers, moves, packed, to.packed != nullptr);
  all.packed_owner = from.packed != nullptr ? from.packed_owner : to.packed_owner;
  device ? device(all) : move_pages(all);
}

void PageMover::start(std::span<const int> layers, std::span<const PageMove> moves,
                      std::span<std::byte* const> packed, bool packs, MoveStream& stream) const {
  const MoveEnd host;
  const auto of_layers =
      packs ? planes(layers, my_pools(), host) : planes(layers, host, my_pools());
  stream.move(moves_of(of_layers, moves, packed, packs));
}

std::vector<std::byte*> PageMover::places(std::span<const int> layers,
                                          std::span<const PageMove> moves,
                                          std::byte* packed) const {
  std::vector<std::byte*> places;
  for (const PageMove& move : moves)
    places.push_back(std::exchange(packed, packed + bytes(layers, move.tokens)));
  return places;
}

std::vector<RowPlace> PageMover::rows(int layer, std::span<const PageMove> moves) const {
  const PagePlanes pools = mine_.layer(layer);
  std::vector<RowPlace> rows;
  for (const PageMove& move : moves)
    for (const TensorView& plane : pools)
      rows.push_back(place_in(plane, move.source, move.source_token));
  return rows;
}

std::vector<RowPlace> PageMover::rows(std::span<const PageMove> moves,
                                      std::span<std::byte* const> packed) const {
  std::vector<RowPlace> rows;
  for (std::size_t i = 0; i < moves.size(); ++i) {
    std::byte* next = packed[i];
    for (const PagePlane& plane : group_.format.planes) {
      const std::size_t width = row_bytes(plane, moves[i].tokens);
      rows.push_back({std::exchange(next, next + width * heads()), width});
    }
  }
  return rows;
}

PageMoves PageMover::moves_of(std::span<const MovedPlane> planes, std::span<const PageMove> moves,
                              std::span<std::byte* const> packed, bool packs) const {
  return {.planes = planes,
          .heads = group_.format.heads,
          .page_size = group_.format.page_size,
          .token_bytes = planes.back().before + planes.back().row_bytes * group_.format.heads,
          .moves = moves,
          .packed = packed,
          .packs = packs};
}

/// Null at an end that is no pool.
std::vector<MovedPlane> PageMover::planes(std::span<const int> layers, const MoveEnd& from,
                                          const MoveEnd& to) const {
  std::vector<MovedPlane> planes;
  std::int64_t before = 0;
  for (const int layer : layers) {
    const PagePlanes sources = from.pools ? from.pools(layer) : PagePlanes();
    const PagePlanes destinations = to.pools ? to.pools(layer) : PagePlanes();
    const auto pool = [](const PagePlanes& of_layer, std::size_t plane) {
      return of_layer.size() == 0 ? nullptr : static_cast<std::byte*>(of_layer[plane].data);
    };
    for (std::size_t plane = 0; plane < group_.format.planes.size(); ++plane) {
      const auto row = static_cast<std::int64_t>(row_bytes(group_.format.planes[plane], 1));
      planes.push_back({pool(sources, plane), pool(destinations, plane), row, before});
      before += row * group_.format.heads;
    }
  }
  return planes;
}

}  // namespace kvmesh
