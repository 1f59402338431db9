// A backend whose copies the tests hold back.
#pragma once

#include <atomic>
#include <memory>

#include "runtime/tiers/host_move_stream.hpp"
#include "tests/runtime/cache/cache_inside.hpp"

namespace kvmesh::test {

/// Copies on a thread, which begin when the gate is open.
class GatedBackend final : public OtherBackend {
 public:
  GatedBackend(std::unique_ptr<Backend> real, std::atomic<bool>& is_open)
      : OtherBackend(std::move(real)), is_open_(is_open) {}
  std::unique_ptr<MoveStream> make_move_stream() override {
    return std::make_unique<HostMoveStream>([this](const PageMoves& moves) {
      is_open_.wait(false);
      move_pages(moves);
    });
  }

 private:
  std::atomic<bool>& is_open_;
};

}  // namespace kvmesh::test
