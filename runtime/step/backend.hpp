// The interface to a rank's device: the CPU's threads, or a GPU.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/combine/gather/gather_way.hpp"
#include "core/move_stream.hpp"
#include "kernels/token_rows.hpp"
#include "kvmesh/kv_cache.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {

/// The options that a step's kernels are made with.
struct StepOptions {
  AttentionShape shape;
  KvFormat format;
  std::vector<AttentionOptions> kinds{};  ///< one per kind of layer, at least one; no block mask
  const BlockMask* block_mask = nullptr;  ///< outlives the step
  CombineOptions combine{};               ///< without participation
  std::optional<StepLimits> limits{};     ///< with `pages` set
  bool shares_prefixes = true;
  std::optional<std::int64_t> least_saved_tokens{};  ///< unset: the device's rule
  std::int64_t fixed_split_tokens = 0;               ///< then prefixes are not shared
  bool reproducible = false;  ///< then attend_partial leaves `out`, combine `mine` alone
};

/// The tensors that a layer's attention reads beside the pool.
struct AttendInput {
  ConstTensorView q;        ///< [tokens, q_heads, k_dim]
  ConstTensorView sinks{};  ///< [q_heads]; empty: none
  std::size_t kind = 0;     ///< the layer's index in StepOptions::kinds
};

/// The kernels of a step: planned once per step, for all kinds of layers together, which share page
/// lists, slots of new tokens and the combine; run once per layer. With limits, tensors have as
/// many tokens as the limits allow.
class StepKernels {
 public:
  virtual ~StepKernels() = default;
  /// Checks that a plan can hold the batch. Called before the allocator appends.
  /// @throws InvalidArgument.
  virtual void check(std::span<const SequenceSize> batch) const = 0;
  /// Plans `batch`. REQUIRES: `batch` outlives the plan.
  virtual void plan(const StepBatch& batch, Stream stream) = 0;
  /// Sets the layer of the calls that follow, which errors name.
  virtual void set_layer(int /*layer*/) {}
  /// REQUIRES: arguments that have passed `check_append`.
  virtual void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                      Stream stream) = 0;
  /// REQUIRES: arguments that have passed `check_attend_partial`.
  virtual void attend_partial(const AttendInput& input, const KvPool& pool, const Partial& out,
                              Stream stream) = 0;
  /// REQUIRES: arguments that have passed `check_combine`. Collective over the kv axis.
  virtual void combine(const Partial& mine, const CombineOutput& output, Stream stream) = 0;
  /// Brings the queries of all heads to every rank of the kv axis: see GatherWay. REQUIRES: a plan,
  /// and tensors that have passed StepRun's checks. Collective over the kv axis.
  virtual void gather_queries(const QueryShares& queries, Stream stream) = 0;
  /// Returns whether `attend` writes a partial before it combines.
  virtual bool needs_partial() const { return true; }
  /// Runs attend_partial and combine, possibly as one kernel. REQUIRES: arguments that have passed
  /// `check_attend`. They may overwrite `partial`, which is not used unless needs_partial().
  virtual void attend(const AttendInput& input, const KvPool& pool, const Partial& partial,
                      const CombineOutput& output, Stream stream) {
    attend_partial(input, pool, partial, stream);
    combine(partial, output, stream);
  }

  // The checks that depend on the device and on the way of the combine. The checks that are the
  // same for all devices come first, and once: StepRun and PagedAttention make them, and the owner
  // of a pool checks that. All come before the first kernel of a layer, so a layer that is refused
  // has written nothing. REQUIRE: a plan. @throws InvalidArgument, Unsupported.
  virtual void check_append(const KvPool& /*pool*/) const {}
  virtual void check_attend_partial(const AttendInput& /*input*/, const KvPool& /*pool*/) const {}
  virtual void check_combine(const Partial& mine, const CombineOutput& output) const = 0;
  virtual void check_attend(const AttendInput& input, const KvPool& pool, const Partial& partial,
                            const CombineOutput& output) const = 0;

  /// Returns how many tiles the plan visits. REQUIRES: the device has planned.
  virtual TileCounts tiles() const = 0;
  /// Returns the bytes of device memory held beside the pools.
  virtual std::int64_t workspace_bytes() const = 0;
  /// Returns the bytes of host memory held. On the CPU the host is the device.
  virtual std::int64_t host_bytes() const = 0;
  /// Returns a number that changes when captured graphs become invalid.
  virtual std::uint64_t generation() const = 0;
};

/// One rank's device. Functions with a stream run after the work on that stream; on the CPU the
/// work is done when the call returns.
class Backend {
 public:
  virtual ~Backend() = default;

  /// Makes kernels for batches like `first`, which the allocator has not appended yet. Plans
  /// nothing.
  virtual std::unique_ptr<StepKernels> make_step(const StepOptions& options,
                                                 std::span<const BatchEntry> first) = 0;
  virtual BlockMask make_block_mask(const MaskMod& mask, const BlockMaskShape& shape) = 0;
  /// Names the programs that a GPU's kernels were loaded from.
  virtual std::vector<std::string> kernel_programs() { return {}; }
  /// Waits for all work on the device, on any stream.
  virtual void wait_idle() = 0;
  /// Waits for the work on `stream` alone.
  virtual void wait(Stream stream) = 0;
  /// Writes as kvmesh::append does, after the work on `stream`; the tokens are written on return.
  /// REQUIRES: tensors that check_writable_pool and check_new_tokens accept, and slots in the pool.
  /// @throws InvalidArgument, before anything is written, if this device does not take the pool.
  virtual void write(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                     std::span<const TokenSlot> slots, Stream stream) = 0;
  /// Returns a function that moves pages of a GPU, as PageMover::move does; empty on the CPU. With
  /// `on` the moves run after the work on that stream, later work there runs after them, and they
  /// are not done on return. Valid as long as the backend.
  virtual DeviceMoves device_moves(std::optional<Stream> on = {}) {
    static_cast<void>(on);
    return {};
  }
  /// Moves of `device_moves` without a stream that were not done at the deadline go on. Later work
  /// on `stream` runs after them; without a stream the call blocks until they are done.
  /// @throws Timeout, Error if the device has failed.
  virtual void after_late_moves(std::optional<Stream> stream) { static_cast<void>(stream); }
  /// Returns a new stream of a GPU, for page moves beside the steps; null on the CPU.
  virtual std::unique_ptr<MoveStream> make_move_stream() { return nullptr; }
  /// Copies the tokens at `from` to the slots `to`. A slot may be in both lists: all tokens are
  /// read before any is written.
  virtual void move_tokens(const TokenPlanes& planes, std::span<const TokenSlot> from,
                           std::span<const TokenSlot> to, Stream stream) = 0;
  /// Copies tokens to host memory [slots, token_bytes], or from it; complete on return.
  virtual void pack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                           std::byte* packed, Stream stream) = 0;
  virtual void unpack_tokens(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                             const std::byte* packed, Stream stream) = 0;
};

/// The backend of the mesh's device. A device's page lists follow the allocator's change log.
/// REQUIRES: the mesh and the allocator outlive it.
std::unique_ptr<Backend> make_backend(Mesh& mesh, PageAllocator& allocator);
/// The same for pages that no allocator manages: a plan compares each page list with the previous
/// one.
std::unique_ptr<Backend> make_backend(Mesh& mesh);

std::unique_ptr<Backend> make_cpu_backend(Mesh& mesh);
/// `allocator` may be null.
/// @throws Unsupported in a build without CUDA.
std::unique_ptr<Backend> make_cuda_backend(Mesh& mesh, PageAllocator* allocator);

}  // namespace kvmesh
