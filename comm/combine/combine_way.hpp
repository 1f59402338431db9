// The interface of all ways to combine partials: planned once per step, run once per layer.
//
//   kind           folder         moves the rows by
//   kHost          host/          the ranks' communicator, between host memories
//   kStaged        staged/        copies to the host, the host's way, copies back
//   kNccl          nccl/          NCCL, between GPUs
//   kPeer          peer/          stores into the owners' mapped memory, between GPUs of one host
//   kHierarchical  hierarchical/  other ways: first within each host, then between the hosts
//
// A new way is a folder here, a kind, a line in the tables of way_strategies.cpp and
// choice/choose_way.cpp, and a case in CombineWays::make; the contract suite tests it like the
// others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "comm/combine/plan_digest.hpp"
#include "comm/combine/rows.hpp"
#include "core/pod/combine_target.hpp"
#include "kvmesh/combine.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// One way, for one rank of a group, which it does not outlive. One thread, and one stream at a
/// time.
class CombineWay {
 public:
  virtual ~CombineWay() = default;
  virtual WayKind kind() const = 0;

  /// Sets the digest of what the next plans are made from. A way whose messages go through the host
  /// sends it behind the rows, and compares it; others ignore it.
  virtual void identify(const PlanDigest&) {}

  /// Sets the layer of the next runs, which the errors of waits on a device name; -1: none. Ways
  /// that wait on the host ignore it.
  virtual void set_layer(int) {}

  /// Prepares for partials of `shape`. Keeps a copy of the mask. Sends nothing; buffers only grow.
  /// Uploads to a device are ordered on `stream`, which is not being captured.
  /// @throws InvalidArgument, with the last plan still valid; Timeout, NcclError.
  virtual void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) = 0;

  /// Checks the arguments of `run`. @throws InvalidArgument, also without a plan.
  virtual void check_run(const Partial& mine, const CombineOutput& output) const = 0;

  /// Combines as planned: see Combiner and DeviceCombiner. REQUIRES: arguments that have passed
  /// `check_run`.
  /// @throws Timeout, PeerLost, NcclError; DigestMismatch if this way compares plans and another
  /// rank's differs. Collective.
  virtual void run(const Partial& mine, const CombineOutput& output, Stream stream) = 0;

  /// Returns the float32 tensors in which partials lie as this way sends them: `run` sends a
  /// partial in these tensors as it is, and copies any other one first. Empty if the plan has none.
  /// `check_run` does not accept them, because they may have any strides. REQUIRES: a plan.
  virtual std::optional<Partial> sent_tensors() const { return std::nullopt; }

  /// Whether the kernels of attention may store the plan's rows themselves, so that partials need
  /// no tensor: see `target`. REQUIRES: a plan.
  virtual bool takes_sent_rows() const { return false; }

  /// Returns the place where the rows of the next run go. REQUIRES: takes_sent_rows().
  /// @throws what `run` throws before anything is sent.
  virtual CombineTarget target();

  /// Runs the rest of a combine whose rows were sent. REQUIRES: the last kernel on `stream` stores
  /// the rows at `target()`, and lets this way's kernel begin only after it has waited for its own
  /// predecessor.
  /// @throws as `run`. Collective.
  virtual void run_sent(const CombineOutput& output, Stream stream);

  /// The strategy of the last plan, with kAuto resolved.
  virtual CombineStrategy strategy() const = 0;

  /// Changes whenever a plan makes the graphs captured so far invalid. Constant if the way cannot
  /// be captured.
  virtual std::uint64_t generation() const = 0;

  /// Memory held on the device of the tensors.
  virtual std::size_t workspace_bytes() const = 0;
  /// Memory held on the host, which may be the device of the tensors.
  virtual std::size_t host_bytes() const { return 0; }
};

}  // namespace kvmesh
