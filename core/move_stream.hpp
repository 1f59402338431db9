// A stream of page moves.
#pragma once

#include <functional>

#include "core/page_moves.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// Moves pages on a GPU; the moves are done on return.
using DeviceMoves = std::function<void(const PageMoves&)>;

/// Moves run in the order of the calls, beside the work of other streams. The caller says what they
/// wait for, and what waits for them. One thread at a time.
class MoveStream {
 public:
  virtual ~MoveStream() = default;
  /// Host memory must stay until the move is done.
  virtual void move(const PageMoves& moves) = 0;
  /// Calls `work` on some thread when all moves so far are done, and says whether all since the
  /// last call have succeeded. It makes no call of the device. The moves to come wait for it if it
  /// `holds` them.
  virtual void call(std::function<void(bool moved)> work, bool holds) = 0;
  /// The moves to come run after the work that is on `stream` now. On the CPU that is done.
  virtual void after(Stream stream) = 0;
  /// The work to come on `stream` runs after the moves so far. On the CPU it blocks until they are
  /// done.
  virtual void before(Stream stream) = 0;
  /// Returns whether all moves and calls are done. @throws Error if the device has failed.
  virtual bool is_done() = 0;
};

}  // namespace kvmesh
