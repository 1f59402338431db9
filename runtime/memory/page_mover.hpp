// Moves tokens of pages between this rank's pools, other ranks' and buffers: one loop for copies on
// write, and for sequences that leave or come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// Tokens of one page, from and to. An end that is no pool ignores its page and token.
struct PageMove {
  std::int32_t source = 0;
  std::int32_t destination = 0;
  int source_token = 0;
  int destination_token = 0;
  int tokens = 0;
};

/// Where the rows of a move lie in one plane: a row holds its tokens of one head, and the next
/// head's row starts `pitch` bytes later.
struct RowPlace {
  std::byte* data = nullptr;
  std::size_t pitch = 0;
};

/// One end of moves: returns the place of a move's rows, each `width` bytes, in plane `plane` of a
/// layer.
using MoveEnd =
    std::function<RowPlace(int layer, std::size_t plane, const PageMove& move, std::size_t width)>;

/// The planes of a layer in some rank's pools.
using PlanesOf = std::function<PagePlanes(int layer)>;

/// Moves pages of one layer group.
class PageMover {
 public:
  /// REQUIRES: `mine` outlives the mover.
  explicit PageMover(const PoolStorage& mine, std::size_t group = 0)
      : mine_(mine), group_(mine.layout().groups()[group]) {}

  /// The group's.
  std::span<const int> layers() const { return group_.layers; }
  /// Bytes of a move's tokens in all planes of these layers.
  std::size_t bytes(std::span<const int> layers, int tokens) const;

  /// Copies move after move, layer after layer, plane after plane. On a GPU the copies run in the
  /// order of the default stream.
  void move(std::span<const int> layers, std::span<const PageMove> moves, const MoveEnd& from,
            const MoveEnd& to) const;

  /// The tokens of the moves' sources, or destinations, in pools shaped as this rank's.
  static MoveEnd sources(const PlanesOf& planes);
  static MoveEnd destinations(const PlanesOf& planes);
  MoveEnd my_sources() const { return sources(my_planes()); }
  MoveEnd my_destinations() const { return destinations(my_planes()); }
  /// A buffer with the rows of all moves, packed in the order in which move() comes to them.
  MoveEnd packed(std::byte* buffer) const;

 private:
  PlanesOf my_planes() const {
    return [this](int layer) { return mine_.layer(layer); };
  }
  int heads() const { return group_.format.heads; }

  const PoolStorage& mine_;
  const PoolGroup& group_;
};

}  // namespace kvmesh
