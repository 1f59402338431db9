#include "runtime/tiers/host_move_stream.hpp"

#include <utility>
#include <vector>

namespace kvmesh {

void HostMoveStream::submit(std::function<void()> work) {
  ++pending_;
  queue_.submit([this, work = std::move(work)] {
    work();
    --pending_;
    return true;
  });
}

void HostMoveStream::move(const PageMoves& moves) {
  submit([this, all = moves, planes = std::vector(moves.planes.begin(), moves.planes.end()),
          list = std::vector(moves.moves.begin(), moves.moves.end()),
          packed = std::vector(moves.packed.begin(), moves.packed.end())]() mutable {
    all.planes = planes;
    all.moves = list;
    all.packed = packed;
    try {
      move_(all);
    } catch (...) {
      moved_ = false;
    }
  });
}

void HostMoveStream::call(std::function<void(bool)> work, bool /*holds: always*/) {
  submit([this, work = std::move(work)] { work(std::exchange(moved_, true)); });
}

}  // namespace kvmesh
