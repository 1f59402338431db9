// The state of a PagedAttention.
#pragma once

#include <memory>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "kvmesh/paged_attention.hpp"
#include "runtime/step/backend.hpp"
#include "runtime/step/plan_agreement.hpp"

namespace kvmesh {

class PagedAttention::State {
 public:
  State(Mesh owner, const AllocatorOptions& options, int max_batch_size);
  ~State() { let_go(); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::int64_t page_size() const { return allocator.options().page_size; }
  std::int64_t pages_per_rank() const { return allocator.options().pages_per_rank; }
  /// Waits for the device's work if a peer could be in the middle of it: see KvCache::State.
  void wait_for_peers() {
    if (mesh.kv_parallel() > 1) backend->wait_idle();
  }
  void let_go() noexcept;
  /// @throws InvalidArgument if a tensor is not on the mesh's device.
  void check_place(const char* what, const ConstTensorView& tensor) const;
  /// Attention of `q` [B * Q_LEN, H, K_D] over the first kv_lens[b] tokens of row batch_rows[b].
  /// @throws InvalidArgument before anything is written.
  /// Collective.
  void attend(std::span<const int> batch_rows, std::span<const std::int64_t> kv_lens,
              const ConstTensorView& q, const KvPool& pool, const CombineOutput& output,
              const ForwardOptions& options);

  Mesh mesh;  // shared with the caller's, which may move or end
  PageAllocator allocator;
  std::unique_ptr<Backend> backend;
  std::vector<SequenceId> rows;
  PlanHistory history;  // of all forwards

 private:
  StepOptions step_options(const ConstTensorView& q, const KvPool& pool,
                           const ForwardOptions& options) const;
  Partial partial(std::int64_t tokens, std::int64_t heads, std::int64_t dim);

  DeviceMemory partial_o_, partial_lse_;
};

}  // namespace kvmesh
