#include "runtime/step/device_mover.hpp"

namespace kvmesh {

void DeviceMover::move(const PageMoves& moves, std::optional<Stream> on) {
  if (!stream_) stream_ = make_stream_();
  if (on) {
    stream_->after(*on);
    stream_->move(moves);
    return stream_->before(*on);
  }
  is_late_ = true;  // also if that fails halfway
  if (moves.packed_owner) owners_.push_back(moves.packed_owner);
  stream_->move(moves);
  wait();
}

void DeviceMover::after_late_moves(std::optional<Stream> on) {
  if (!is_late_) return;
  if (on) return stream_->before(*on);
  wait();
}

void DeviceMover::wait() {
  wait_([this] { return stream_->is_done(); });
  is_late_ = false;
  owners_.clear();
}

}  // namespace kvmesh
