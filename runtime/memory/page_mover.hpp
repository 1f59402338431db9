// Moves tokens of pages between this rank's pools, other ranks' and buffers: one loop for copies on
// write, for sequences that leave or come, and for tiers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/move_stream.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// The place of the rows of a move in one plane: a row holds its tokens of one head, and the next
/// head's row starts `pitch` bytes later.
struct RowPlace {
  std::byte* data = nullptr;
  std::size_t pitch = 0;
};

/// The planes of a layer in some rank's pools.
using PlanesOf = std::function<PagePlanes(int layer)>;

/// One end of moves: one of these two.
struct MoveEnd {
  PlanesOf pools{};             ///< pools shaped as this rank's
  std::byte* packed = nullptr;  ///< host memory with the rows in the order of the moves
  std::shared_ptr<const void> packed_owner{};  ///< as PageMoves::packed_owner
};

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
  MoveEnd my_pools() const {
    return {.pools = [this](int layer) { return mine_.layer(layer); }};
  }

  /// Moves rows from end to end. Packed, they are in the order of the moves, in each layer after
  /// layer, plane after plane, head after head. The moves are done on return. `device` moves pools
  /// of a GPU; empty on the CPU.
  void move(std::span<const int> layers, std::span<const PageMove> moves, const MoveEnd& from,
            const MoveEnd& to, const DeviceMoves& device) const;
  /// Enqueues moves between this rank's pools and host memory, [moves] where the rows of each
  /// begin.
  void start(std::span<const int> layers, std::span<const PageMove> moves,
             std::span<std::byte* const> packed, bool packs, MoveStream& stream) const;

  /// Returns [moves] where the rows of each begin, if they follow one another from `packed` on.
  std::vector<std::byte*> places(std::span<const int> layers, std::span<const PageMove> moves,
                                 std::byte* packed) const;
  /// Returns [moves][planes] where the rows of one layer lie in this rank's pools, in host memory:
  /// at each move's source.
  std::vector<RowPlace> rows(int layer, std::span<const PageMove> moves) const;
  /// The same of packed rows of one layer, [moves] where those of each begin.
  std::vector<RowPlace> rows(std::span<const PageMove> moves,
                             std::span<std::byte* const> packed) const;

 private:
  std::vector<MovedPlane> planes(std::span<const int> layers, const MoveEnd& from,
                                 const MoveEnd& to) const;
  PageMoves moves_of(std::span<const MovedPlane> planes, std::span<const PageMove> moves,
                     std::span<std::byte* const> packed, bool packs) const;
  std::size_t heads() const { return static_cast<std::size_t>(group_.format.heads); }

  const PoolStorage& mine_;
  const PoolGroup& group_;
};

}  // namespace kvmesh
