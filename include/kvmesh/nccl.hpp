// Groups of GPUs over NCCL, and the combine on them. What needs NCCL throws Unsupported where it
// was not built in.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "kvmesh/combine.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// "2.28.3", or empty if this build has no NCCL.
std::string nccl_version();

/// What the members of a group must all have before they can meet; NCCL's `ncclUniqueId`.
struct NcclUniqueId {
  std::array<char, 128> bytes{};
};

/// On one rank; the engine brings it to the others. @throws NcclError, Unsupported.
NcclUniqueId make_nccl_unique_id();

/// NCCL failed, and says how.
class NcclError : public Error {
 public:
  NcclError(Rank rank, std::string operation, const std::string& reason);
  Rank rank() const { return rank_; }
  const std::string& operation() const { return operation_; }

 private:
  Rank rank_;
  std::string operation_;
};

/// One rank's membership in a group of GPUs: an NCCL communicator.
///
/// Every wait has a deadline. After an error the group is broken: it takes no more work, and if it
/// owns its communicator, that is aborted at once, which also ends NCCL's kernels on the streams.
/// (After an error of the device itself: when the group is destroyed.)
/// Movable. One thread at a time.
class NcclGroup {
 public:
  /// Collective over `bootstrap`, which is used here only. The group's ranks are bootstrap's; for
  /// the axes of a mesh give the communicators that it was split into. Each rank has a GPU of its
  /// own.
  /// @throws Timeout, PeerLost, NcclError, Unsupported; Error if the device failed.
  NcclGroup(Communicator& bootstrap, int device);

  /// Collective over all who have `id`, each with a rank of its own.
  /// @throws InvalidArgument if `rank` is not in [0, size); Timeout, which names all the others
  /// (NCCL does not tell who did not come); NcclError, Unsupported; Error if the device failed.
  NcclGroup(const NcclUniqueId& id, Rank rank, int size, int device,
            std::chrono::milliseconds deadline = std::chrono::seconds(60));

  /// Over an engine's own communicator: `nccl_comm` is its `ncclComm_t`, which it keeps, destroys
  /// and aborts itself. @throws InvalidArgument if it is null; NcclError, Unsupported.
  static NcclGroup borrow(void* nccl_comm,
                          std::chrono::milliseconds deadline = std::chrono::seconds(60));

  /// Waits 2 s for a peer at most: an owned communicator is aborted, and what it had still to send
  /// over a network is lost, although this rank's stream is done. So end it when the streams of all
  /// ranks are (a mesh sees to that for its own group), or with `close`.
  ~NcclGroup();
  NcclGroup(NcclGroup&&) noexcept;
  NcclGroup& operator=(NcclGroup&&) noexcept;

  Rank rank() const;
  int size() const;
  int device() const;
  /// False if it is borrowed.
  bool is_owned() const;
  /// The `ncclComm_t`. Null once the group is broken or closed and its communicator is gone.
  void* handle() const;

  std::chrono::milliseconds deadline() const;
  void set_deadline(std::chrono::milliseconds deadline);

  /// Waits for all work on the stream, watching NCCL. The one wait that notices a peer that does
  /// not come: use it instead of the CUDA runtime's. @throws Timeout (NCCL does not tell who is
  /// late, so it names all peers), NcclError; Error if the device failed.
  void wait(Stream stream, std::string_view operation);
  /// The same, until `is_done` says yes: for events. What it throws breaks the group.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation);

  /// Collective, and waits for the peers: ends the group in good order. No graph that captured its
  /// messages may be left. @throws Timeout, NcclError.
  void close();

  struct State;
  State& state() { return *state_; }

 private:
  explicit NcclGroup(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// The combine of combine.hpp on GPUs, in two steps: `plan` on the host, once a step, and `run` on
/// a stream, once a layer.
///
/// Where it differs from `Combiner`: tensors lie on the group's device, and the last dimension of
/// `mine.lse` is contiguous. kAllToAll merges in rank order: the same bits for the same inputs,
/// whatever the group's links. The other two add in NCCL's order, which is fixed for a given size,
/// group and NCCL version only. Beside NCCL's own, `run` launches at most two kernels.
///
///   kAllToAll       pack  ->  send and receive (O, LSE), what takes part  ->  merge
///   kReduceScatter  gather LSEs  ->  rescale  ->  reduce-scatter (kAll: all-reduce)  ->  convert
///   kAllReduce      maximum of the LSEs  ->  rescale  ->  reduce-scatter (kAll: all-reduce) of the
///                   sums and weights  ->  divide. With a mask the LSEs are gathered instead.
///
/// Only kAllToAll sends less under a mask.
///
/// Does not outlive the group, which may be moved. One thread, and one stream at a time: the
/// buffers are shared by all runs.
class DeviceCombiner {
 public:
  explicit DeviceCombiner(NcclGroup& group);
  ~DeviceCombiner();
  DeviceCombiner(DeviceCombiner&&) noexcept;
  DeviceCombiner& operator=(DeviceCombiner&&) noexcept;

  /// Prepares for partials of this shape. No message; buffers only grow. What the device needs to
  /// know of the mask is uploaded on `stream`, and only if it changed: after the runs given to
  /// `stream` before, and before the later ones. Not while the stream is captured. Where more
  /// than 64 KiB are uploaded it waits for the stream.
  /// @throws InvalidArgument, with the last plan still valid; Timeout, NcclError.
  void plan(std::int64_t tokens, std::int64_t heads, std::int64_t v_dim,
            const CombineOptions& options, Stream stream);

  /// Collective. Asynchronous on `stream`; allocates nothing, does not wait for the device, may be
  /// captured in a CUDA graph. Run once before a capture: NCCL connects at the first use of a way.
  /// @throws InvalidArgument before anything is sent; Timeout, NcclError.
  void run(const Partial& mine, const CombineOutput& output, Stream stream);

  /// Changes whenever a plan makes the graphs captured so far invalid: another shape or strategy,
  /// larger buffers, or a mask that gives other messages.
  std::uint64_t generation() const;

  /// The strategy of the last plan, with kAuto resolved.
  CombineStrategy strategy() const;

  /// Device memory held.
  std::size_t workspace_bytes() const;

 private:
  std::unique_ptr<CombineWay> way_;
};

}  // namespace kvmesh
