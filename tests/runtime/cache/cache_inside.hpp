// The state behind a KvCache, for tests that let its parts fail.
#pragma once

#include <functional>

#include "runtime/cache/cache_state.hpp"

namespace kvmesh::test {

// An explicit instantiation may name a private member: no friend is needed in a public header.
auto& inside(KvCache& cache);
template <auto Member>
struct Opened {
  friend auto& inside(KvCache& cache) { return *(cache.*Member); }
};
template struct Opened<&KvCache::state_>;

/// As CacheTiers takes it.
template <class State>
std::function<void(std::optional<kvmesh::Stream>)> after_late_moves(State& state) {
  return [&state](std::optional<kvmesh::Stream> stream) {
    if (!stream) return state.wait_for_late_moves();
    state.order_after_late_moves(*stream);
  };
}

/// Does what the backend does that it replaces.
class OtherBackend : public Backend {
 public:
  explicit OtherBackend(std::unique_ptr<Backend> real) : real_(std::move(real)) {}

  std::unique_ptr<StepKernels> make_step(const StepOptions& options,
                                         std::span<const BatchEntry> first) override {
    return real_->make_step(options, first);
  }
  BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) override {
    return real_->make_block_mask(mask, shape);
  }
  void wait_idle() override { real_->wait_idle(); }
  void wait(kvmesh::Stream stream) override { real_->wait(stream); }
  void write(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
             std::span<const TokenSlot> slots, kvmesh::Stream stream) override {
    real_->write(pool, k, v, slots, stream);
  }
  DeviceMoves device_moves(std::optional<kvmesh::Stream> on) override {
    return real_->device_moves(on);
  }
  void after_late_moves(std::optional<kvmesh::Stream> stream) override {
    real_->after_late_moves(stream);
  }
  std::unique_ptr<MoveStream> make_move_stream() override { return real_->make_move_stream(); }
  void move_tokens(const TokenPlanes& planes, std::span<const TokenSlot> from,
                   std::span<const TokenSlot> to, kvmesh::Stream stream) override {
    real_->move_tokens(planes, from, to, stream);
  }
  void pack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots, std::byte* packed,
                   kvmesh::Stream stream) override {
    real_->pack_tokens(planes, slots, packed, stream);
  }
  void unpack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                     const std::byte* packed, kvmesh::Stream stream) override {
    real_->unpack_tokens(planes, slots, packed, stream);
  }

 private:
  std::unique_ptr<Backend> real_;
};

}  // namespace kvmesh::test
