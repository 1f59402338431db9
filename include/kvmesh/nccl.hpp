// Groups of GPUs over NCCL, and the combine on them. In a build without NCCL, functions that need
// it throw Unsupported.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/combine.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/stream.hpp"

namespace KVMESH_API kvmesh {

/// "2.28.3", or empty if this build has no NCCL.
std::string nccl_version();

/// The id with which the members of a group meet: NCCL's `ncclUniqueId`. All members need the same.
struct NcclUniqueId {
  std::array<char, 128> bytes{};
};

/// Makes an id. Call it on one rank; the engine sends the id to the other ranks.
/// @throws NcclError, Unsupported.
NcclUniqueId make_nccl_unique_id();

/// An NCCL call failed; the message has NCCL's reason.
class NcclError : public Error {
 public:
  NcclError(Rank rank, std::string operation, const std::string& reason);
  Rank rank() const { return rank_; }
  const std::string& operation() const { return operation_; }
  ErrorCode code() const noexcept override { return ErrorCode::kNccl; }

 private:
  Rank rank_;
  std::string operation_;
};

/// One rank's membership in a group of GPUs: an NCCL communicator.
///
/// Every wait has a deadline. After an error the group is broken and takes no more work. If the
/// group owns its communicator, it aborts it at once, which also ends NCCL's kernels on the
/// streams. (After an error of the device itself it aborts when the group is destroyed.)
///
/// Movable. One thread at a time.
class NcclGroup {
 public:
  /// Makes a group of the ranks of `bootstrap`, which is used only in this call. For an axis of a
  /// mesh, pass the communicator of that axis.
  /// REQUIRES: each rank has a GPU that no other rank uses.
  /// @throws Timeout, PeerLost, NcclError, Unsupported; Error if the device failed.
  /// Collective over `bootstrap`.
  NcclGroup(Communicator& bootstrap, int device);

  /// Makes a group of the ranks that pass the same `id`.
  /// REQUIRES: every rank in [0, size) is passed once.
  /// @throws InvalidArgument if `rank` is not in [0, size); Timeout, which names all other ranks
  /// (NCCL does not report which ranks are missing); NcclError, Unsupported; Error if the device
  /// failed.
  /// Collective over the ranks of the group.
  NcclGroup(const NcclUniqueId& id, Rank rank, int size, int device,
            std::chrono::milliseconds deadline = std::chrono::seconds(60));

  /// Makes a group over the engine's own communicator: `nccl_comm` is its `ncclComm_t`. The engine
  /// still owns, destroys and aborts it.
  /// @throws InvalidArgument if `nccl_comm` is null; NcclError, Unsupported.
  static NcclGroup borrow(void* nccl_comm,
                          std::chrono::milliseconds deadline = std::chrono::seconds(60));

  /// Aborts an owned communicator, waiting at most 2 s. An abort can lose data that is still in
  /// flight over a network even if this rank's stream is idle. Destroy a group only when the
  /// streams of all ranks are idle (a mesh ensures this for its own group), or call close() first.
  ~NcclGroup();
  NcclGroup(NcclGroup&&) noexcept;
  NcclGroup& operator=(NcclGroup&&) noexcept;

  Rank rank() const;
  int size() const;
  int device() const;
  /// False for a borrowed communicator.
  bool is_owned() const;
  /// The `ncclComm_t`. Null after the group has been closed, or has broken and aborted its
  /// communicator.
  void* handle() const;

  std::chrono::milliseconds deadline() const;
  void set_deadline(std::chrono::milliseconds deadline);
  /// Errors name rank r `names[r]` from now on. A group that a communicator was given for, or that
  /// a mesh uses, has its names.
  void set_names(std::vector<Rank> names);

  /// Blocks until all work on the stream is done, and polls NCCL for errors meanwhile. Use it
  /// instead of the CUDA runtime's waits, which never return if a peer is missing.
  /// @throws Timeout, which names all peers (NCCL does not report which ones are late); NcclError;
  /// Error if the device failed.
  void wait(Stream stream, std::string_view operation);
  /// Blocks in the same way until `is_done` returns true, for example for an event. An exception
  /// from `is_done` breaks the group.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation);

  /// Closes the group in good order.
  /// REQUIRES: no graph that captured the group's messages exists.
  /// @throws Timeout, NcclError.
  /// Collective; blocks until the peers have closed it too.
  void close();

  struct State;
  State& state() { return *state_; }

 private:
  explicit NcclGroup(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// `to_natural` of partial.hpp on a GPU: one kernel on `stream`, which may be captured.
/// REQUIRES: the last dimension of `lse` is contiguous.
/// @throws InvalidArgument if `partial` is not a valid partial there; Unsupported without CUDA.
Partial to_natural(const Base2Partial& partial, Stream stream);

/// The combine of combine.hpp on GPUs, in two steps: `plan` on the host, once per step, and `run`
/// on a stream, once per layer.
///
/// Differences from `Combiner`: tensors are on the group's device, and the last dimension of
/// `mine.lse` is contiguous. kAllToAll merges in rank order: the same inputs give the same bits,
/// whatever links connect the group. The other two strategies add in NCCL's order, which is fixed
/// only for a given size, group and NCCL version. `run` launches at most two kernels in addition to
/// NCCL's.
///
///   kAllToAll       pack  ->  send and receive the participating (O, LSE)  ->  merge
///   kReduceScatter  gather LSEs  ->  rescale  ->  reduce-scatter (kAll: all-reduce)  ->  convert
///   kAllReduce      maximum of the LSEs  ->  rescale  ->  reduce-scatter (kAll: all-reduce) of the
///                   sums and weights  ->  divide. With a mask the LSEs are gathered instead.
///
/// Only kAllToAll sends fewer bytes under a mask.
///
/// REQUIRES: the group, which may be moved, outlives the combiner; one thread and one stream at a
/// time, because all runs share the buffers.
class DeviceCombiner {
 public:
  explicit DeviceCombiner(NcclGroup& group);
  ~DeviceCombiner();
  DeviceCombiner(DeviceCombiner&&) noexcept;
  DeviceCombiner& operator=(DeviceCombiner&&) noexcept;

  /// Prepares for partials of this shape. Buffers only grow. If the mask has changed, its device
  /// data are uploaded on `stream`: after the runs already on `stream`, before later ones. Sends
  /// nothing to other ranks.
  /// REQUIRES: the stream is not being captured.
  /// @throws InvalidArgument, and the last plan stays valid; Timeout, NcclError.
  /// Blocks until the stream is idle if more than 64 KiB are uploaded.
  void plan(std::int64_t tokens, std::int64_t heads, std::int64_t v_dim,
            const CombineOptions& options, Stream stream);

  /// Merges on `stream`. Asynchronous; allocates nothing, does not wait for the device, and may be
  /// captured in a CUDA graph.
  /// REQUIRES: before a capture, one run without capture, since NCCL connects ranks at the first
  /// use.
  /// @throws InvalidArgument before anything is sent; Timeout, NcclError.
  /// Collective.
  void run(const Partial& mine, const CombineOutput& output, Stream stream);

  /// A number that changes whenever a plan makes earlier captured graphs invalid: by another shape
  /// or strategy, larger buffers, or a mask that needs other messages.
  std::uint64_t generation() const;

  /// The strategy of the last plan, with kAuto resolved.
  CombineStrategy strategy() const;

  /// Device memory held.
  std::size_t workspace_bytes() const;

 private:
  std::unique_ptr<CombineWay> way_;
};

}  // namespace kvmesh
