// Page moves in host memory that are made as late as a GPU may make them.
#pragma once

#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "core/move_stream.hpp"

namespace kvmesh::test {

/// Moves wait until someone polls for them a second time, or orders work after them. Until then
/// packed rows are poison, and rows to unpack are not read. One thread.
class LateStream final : public MoveStream {
 public:
  /// `step` is called by each move and each poll. If it throws, the device has failed: it drops the
  /// moves that wait.
  explicit LateStream(std::function<void()> step = [] {}) : step_(std::move(step)) {}

  void move(const PageMoves& moves) override {
    run_step();
    was_polled_ = false;
    ++moves_;
    if (moves.packs) spoil(moves);
    PageMoves kept = moves;
    kept.packed_owner.reset();  // a GPU keeps no memory alive
    waiting_.push_back([all = kept, planes = std::vector(moves.planes.begin(), moves.planes.end()),
                        list = std::vector(moves.moves.begin(), moves.moves.end()),
                        packed = std::vector(moves.packed.begin(), moves.packed.end())]() mutable {
      all.planes = planes;
      all.moves = list;
      all.packed = packed;
      move_pages(all);
    });
  }
  void call(std::function<void(bool)> work, bool /*holds*/) override {
    waiting_.push_back([work = std::move(work)] { work(true); });
  }
  void after(kvmesh::Stream) override {}
  void before(kvmesh::Stream) override { make_moves(); }
  bool is_done() override {
    run_step();
    if (!waiting_.empty() && (is_stuck_ || !std::exchange(was_polled_, true))) return false;
    make_moves();
    return true;
  }

  /// Polls make no move while it is stuck.
  void stick(bool is_stuck) { is_stuck_ = is_stuck; }
  /// Calls of `move` so far.
  int moves() const { return moves_; }
  bool is_waiting() const { return !waiting_.empty(); }

 private:
  void make_moves() {
    for (const auto& work : std::exchange(waiting_, {})) work();
  }
  void run_step() {
    try {
      step_();
    } catch (...) {
      waiting_.clear();
      throw;
    }
  }
  static void spoil(const PageMoves& moves) {
    for (std::size_t i = 0; i < moves.moves.size(); ++i)
      std::memset(moves.packed[i], 0xFF,
                  static_cast<std::size_t>(moves.moves[i].tokens * moves.token_bytes));
  }

  std::function<void()> step_;
  std::vector<std::function<void()>> waiting_;
  bool was_polled_ = false;
  bool is_stuck_ = false;
  int moves_ = 0;
};

}  // namespace kvmesh::test
