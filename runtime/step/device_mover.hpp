// Moves of a device's pages, on a stream of their own.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/move_stream.hpp"

namespace kvmesh {

/// The moves of Backend::device_moves.
///
/// A move goes on when the host stops waiting for it, and may write pages that its caller has given
/// back, as the moves of Staging may. It is late until a wait has seen its end; every use of pages
/// meanwhile comes after it, and the owner of its packed rows is kept until then.
class DeviceMover {
 public:
  using IsDone = std::function<bool()>;
  /// `make_stream` is called by the first move. `wait(is_done)` blocks until is_done() returns
  /// true, or throws.
  DeviceMover(std::function<std::unique_ptr<MoveStream>()> make_stream,
              std::function<void(const IsDone&)> wait)
      : make_stream_(std::move(make_stream)), wait_(std::move(wait)) {}

  /// The moves are done on return; with `on` they run after the work on that stream, and the work
  /// to come there runs after them. REQUIRES: with `on`, the caller keeps packed rows alive.
  /// @throws what `wait` throws.
  void move(const PageMoves& moves, std::optional<Stream> on);
  /// Later work on `on` runs after late moves; without a stream the call blocks until they are
  /// done. @throws as move.
  void after_late_moves(std::optional<Stream> on);

 private:
  void wait();

  std::function<std::unique_ptr<MoveStream>()> make_stream_;
  std::function<void(const IsDone&)> wait_;
  std::vector<std::shared_ptr<const void>> owners_;  // of the packed rows of late moves
  std::unique_ptr<MoveStream> stream_;               // ends first: its moves use these rows
  bool is_late_ = false;                             // perhaps
};

}  // namespace kvmesh
