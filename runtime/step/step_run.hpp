// The kernels of a step and the partial between them, for pages of any owner.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "core/owners/growing_block.hpp"
#include "kvmesh/device_memory.hpp"
#include "runtime/step/backend.hpp"

namespace kvmesh {

/// Returns the options of a plan that concern its combine.
CombineOptions combine_options(const PlanOptions& options);

/// Returns how many tokens the tensors of a step have: `tokens`, or with limits the most that they
/// allow.
std::int64_t tokens_of(const std::optional<StepLimits>& limits, std::int64_t tokens);

/// Checks a layer's tensors, and runs the parts of a step on them. Planned once per step, run once
/// per layer. REQUIRES: mesh, backend and the options' block mask outlive it.
class StepRun {
 public:
  /// Makes the kernels for batches like `first`, and takes the memory that limits need. Plans
  /// nothing.
  /// @throws InvalidArgument.
  StepRun(Mesh& mesh, Backend& backend, const StepOptions& options,
          std::span<const BatchEntry> first);

  /// Checks that a plan can hold the batch. @throws InvalidArgument.
  void check(std::span<const SequenceSize> batch) const;
  /// REQUIRES: `batch` outlives the plan.
  void plan(const StepBatch& batch, Stream stream);

  /// Return how many tokens the tensors have: the batch's number, or with limits the most that they
  /// allow.
  std::int64_t query_tokens() const { return room_for(batch_ ? batch_->query_tokens() : 0); }
  std::int64_t append_tokens() const { return room_for(batch_ ? batch_->append_tokens() : 0); }
  IndexRange tokens_of_output() const;
  IndexRange heads_of_output() const;

  /// Sets the layer of the runs that follow, which errors of waits on a device name.
  void set_layer(int layer) { kernels_->set_layer(layer); }
  /// Appends, if `appends` is set, and attends. `kind` is the layer's index in StepOptions::kinds.
  /// Checks all tensors, once, before it writes anything. REQUIRES, here and below: a pool of the
  /// options' shape that its owner has checked (check_pool).
  void run(const KvPool& pool, const LayerInput& input, const CombineOutput& output, Stream stream,
           std::size_t kind = 0, bool appends = true);
  void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
              Stream stream);
  void attend_partial(const KvPool& pool, const AttendInput& input, const Partial& out,
                      Stream stream);
  void combine(const Partial& mine, const CombineOutput& output, Stream stream);
  /// REQUIRES: a plan.
  void gather_queries(const ConstTensorView& mine, const TensorView& q, Stream stream);

  /// REQUIRES: the device has planned.
  TileCounts tiles() const { return kernels_->tiles(); }
  /// Returns the bytes of device memory held beside the pools. On the CPU, whose memory is the
  /// host's, these are all bytes that the step holds.
  std::int64_t workspace_bytes() const;
  std::int64_t host_bytes() const;
  /// Returns a number that changes when captured graphs become invalid.
  std::uint64_t generation() const { return kernels_->generation() + partial_growths_; }

 private:
  std::int64_t room_for(std::int64_t tokens) const { return tokens_of(options_.limits, tokens); }
  IndexRange share(std::int64_t count) const;
  void check_place(const ConstTensorView& tensor, std::string_view name) const;
  void check_output(const CombineOutput& output) const;
  void check_input(const AttendInput& input) const;
  void check_gather(const ConstTensorView& mine, const TensorView& q) const;
  /// True if there is nothing to append, and no tensors for it.
  bool has_no_tokens(const ConstTensorView& k, const ConstTensorView& v) const {
    return k.empty() && v.empty() && append_tokens() == 0;
  }
  void check_append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v) const;
  std::int64_t partial_bytes(std::int64_t tokens) const;
  void make_partial();
  void* floats(GrowingBlock<DeviceMemory>& memory, std::int64_t count);

  Mesh& mesh_;
  StepOptions options_;
  std::unique_ptr<StepKernels> kernels_;
  const StepBatch* batch_ = nullptr;
  GrowingBlock<DeviceMemory> partial_o_;    // [tokens, q_heads, v_dim]
  GrowingBlock<DeviceMemory> partial_lse_;  // [tokens, q_heads]
  Partial partial_;
  std::uint64_t partial_growths_ = 0;
};

}  // namespace kvmesh
