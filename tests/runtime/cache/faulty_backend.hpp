// A backend whose waits and copies fail, one at a time.
#pragma once

#include <atomic>

#include "runtime/tiers/host_move_stream.hpp"
#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/runtime/cache/late_stream.hpp"

namespace kvmesh::test {

/// Lets one step of a rank fail, by its number.
struct Faults {
  int fails = -1;
  int steps = 0;
  void step() {
    if (steps++ == fails) throw Error("injected");
  }
};

/// Its waits, the making of kernels, and moves of pages and tokens, are steps, as are the moves and
/// polls of its streams. The CPU makes all moves.
class FaultyBackend final : public OtherBackend {
 public:
  FaultyBackend(std::unique_ptr<Backend> real, Faults& faults)
      : OtherBackend(std::move(real)), faults_(faults) {}
  std::unique_ptr<StepKernels> make_step(const StepOptions& options,
                                         std::span<const BatchEntry> first) override {
    faults_.step();
    return OtherBackend::make_step(options, first);
  }
  void wait_idle() override {
    faults_.step();
    OtherBackend::wait_idle();
  }
  void wait(kvmesh::Stream stream) override {
    faults_.step();
    OtherBackend::wait(stream);
  }
  DeviceMoves device_moves(std::optional<kvmesh::Stream> /*on*/) override {
    return [this](const PageMoves& moves) {
      faults_.step();
      move_pages(moves);
    };
  }
  std::unique_ptr<MoveStream> make_move_stream() override {
    return std::make_unique<LateStream>([this] { faults_.step(); });
  }
  void move_tokens(const TokenPlanes& planes, std::span<const TokenSlot> from,
                   std::span<const TokenSlot> to, kvmesh::Stream stream) override {
    faults_.step();
    OtherBackend::move_tokens(planes, from, to, stream);
  }
  void pack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots, std::byte* packed,
                   kvmesh::Stream stream) override {
    faults_.step();
    OtherBackend::pack_tokens(planes, slots, packed, stream);
  }
  void unpack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                     const std::byte* packed, kvmesh::Stream stream) override {
    faults_.step();
    OtherBackend::unpack_tokens(planes, slots, packed, stream);
  }

 private:
  Faults& faults_;
};

/// Its streams are threads whose moves fail while `fails`.
class FaultyCopies final : public OtherBackend {
 public:
  FaultyCopies(std::unique_ptr<Backend> real, const std::atomic<bool>& fails)
      : OtherBackend(std::move(real)), fails_(fails) {}
  std::unique_ptr<MoveStream> make_move_stream() override {
    return std::make_unique<HostMoveStream>([this](const PageMoves& moves) {
      if (fails_) throw Error("injected");
      move_pages(moves);
    });
  }

 private:
  const std::atomic<bool>& fails_;
};

}  // namespace kvmesh::test
