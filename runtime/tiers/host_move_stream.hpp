// Page moves in host memory, on a thread.
#pragma once

#include <atomic>
#include <functional>
#include <utility>

#include "core/move_stream.hpp"
#include "runtime/tiers/job_queue.hpp"

namespace kvmesh {

class HostMoveStream final : public MoveStream {
 public:
  /// `move` makes each call's moves, on the thread; a move that throws has failed.
  explicit HostMoveStream(std::function<void(const PageMoves&)> move = move_pages)
      : move_(std::move(move)) {}

  void move(const PageMoves& moves) override;
  void call(std::function<void(bool moved)> work, bool holds) override;
  void after(Stream) override {}
  void before(Stream) override { queue_.wait_all(); }
  bool is_done() override { return pending_ == 0; }

 private:
  void submit(std::function<void()> work);

  std::function<void(const PageMoves&)> move_;
  std::atomic<int> pending_ = 0;
  bool moved_ = true;  // since the last call; the thread's
  JobQueue queue_;     // last: its thread uses the others
};

}  // namespace kvmesh
