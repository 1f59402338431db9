// Lets pages of a cache on the CPU move late: the records of streams, which pass through memory,
// and copies of pages.
#pragma once

#include <memory>

#include "core/cuda/device_wait.hpp"
#include "runtime/step/device_mover.hpp"
#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/runtime/cache/late_stream.hpp"

namespace kvmesh::test {

/// Has LateStreams for page moves: that of make_move_stream, and one for copies, which waits for
/// them as that of a GPU.
class LateBackend final : public OtherBackend {
 public:
  LateBackend(std::unique_ptr<Backend> real, Mesh& mesh)
      : OtherBackend(std::move(real)),
        mover_([this] { return make_copies(); },
               [&mesh](const DeviceMover::IsDone& is_done) {
                 const Communicator& kv = mesh.kv_comm();
                 wait_until(is_done, {kv.rank(), kv.deadline(), "move pages"});
               }) {}

  std::unique_ptr<MoveStream> make_move_stream() override {
    ++streams_;
    return make_stream(stream_);
  }
  DeviceMoves device_moves(std::optional<kvmesh::Stream> on) override {
    return [this, on](const PageMoves& moves) { mover_.move(moves, on); };
  }
  void after_late_moves(std::optional<kvmesh::Stream> on) override { mover_.after_late_moves(on); }

  LateStream& stream() { return *stream_; }
  bool has_stream() const { return stream_ != nullptr; }
  /// That of copies. REQUIRES: there has been a copy.
  LateStream& copies() { return *copies_; }
  bool is_copying() const { return copies_ != nullptr && copies_->is_waiting(); }
  /// Polls make no copy of the first ones on.
  void stick_copies() { sticks_ = true; }
  int streams() const { return streams_; }
  /// Moves and polls of its streams so far; it may outlive them.
  std::shared_ptr<const int> polls() const { return polls_; }

 private:
  std::unique_ptr<MoveStream> make_stream(LateStream*& made) {
    auto stream = std::make_unique<LateStream>([polls = polls_] { ++*polls; });
    made = stream.get();
    return stream;
  }

  std::unique_ptr<MoveStream> make_copies() {
    auto stream = make_stream(copies_);
    copies_->stick(sticks_);
    return stream;
  }

  std::shared_ptr<int> polls_ = std::make_shared<int>(0);
  LateStream* stream_ = nullptr;
  LateStream* copies_ = nullptr;
  bool sticks_ = false;
  int streams_ = 0;
  DeviceMover mover_;
};

/// Replaces the backend of a group.
inline LateBackend& make_late(KvCache& cache, std::size_t group) {
  auto& state = inside(cache);
  auto late = std::make_unique<LateBackend>(std::move(state.groups[group].backend), state.mesh);
  LateBackend& backend = *late;
  state.groups[group].backend = std::move(late);
  return backend;
}
/// Lets records pass through memory for batches of this many bytes.
inline LateBackend& stage(KvCache& cache, std::size_t batch_bytes) {
  inside(cache).staging.batch_bytes = batch_bytes;
  return make_late(cache, 0);
}
inline void stop_staging(KvCache& cache) {
  inside(cache).staging = {};
  inside(cache).groups[0].backend = make_backend(cache.mesh(), inside(cache).groups[0].allocator);
}

}  // namespace kvmesh::test
