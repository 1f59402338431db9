// The ranks of a job, arranged as kv_parallel x head_parallel.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "kvmesh/api.h"
#include "kvmesh/communicator.hpp"
#include "kvmesh/device_group.hpp"
#include "kvmesh/membership.hpp"
#include "kvmesh/stream.hpp"
#include "kvmesh/tensor.hpp"
#include "kvmesh/thread_pool.hpp"

namespace KVMESH_API kvmesh {

/// The backend that a program selects; kAuto selects a GPU if the build and the machine have one.
enum class DeviceChoice : std::uint8_t { kAuto, kCpu, kCuda };

/// Returns the choice called `text`: "auto", "cpu" or "cuda". @throws InvalidArgument.
DeviceChoice device_choice_from(std::string_view text);

struct MeshOptions {
  /// Number of ranks that hold different heads of the same pages. It must divide the number of
  /// ranks. Along the other axis, size / head_parallel ranks hold different pages of the same
  /// heads.
  int head_parallel = 1;
  /// Threads of this rank: of a CPU's backend, and on any device of exports and imports. 0: its
  /// share of the cores that the process may use.
  int threads = 0;
  /// The kind of memory of pages and tensors. Programs that pass host memory need kCpu.
  DeviceChoice device = DeviceChoice::kCpu;
  /// The rank's GPU, by its number among those that the process can use. Unset: the GPUs of a
  /// machine in the order of its ranks, which share them if there are more. Has no effect on the
  /// CPU. It may differ by rank.
  std::optional<int> gpu{};
  /// Longest wait for any peer, including start-up (except inside MPI_Init). Empty: the world
  /// communicator's deadline, normally 60 s. It may differ by rank.
  std::optional<std::chrono::milliseconds> deadline{};
  /// Whether the mesh makes an NCCL group of the kv ranks' GPUs, if it can. Set it to false in an
  /// engine that passes its own group (DeviceGroup::use_nccl). Has no effect on the CPU. REQUIRES:
  /// equal on all ranks.
  bool makes_nccl = true;
  /// Memory of each GPU into which the kv ranks' GPUs store the rows of a combine (WayKind::kPeer),
  /// if they are linked by NVLink, all of them or those of each host; 0: none. Rows that do not fit
  /// into it go another way: with 64 MiB and heads or tokens divided among the ranks, those of 300
  /// tokens of 128 heads of dim 128 as float32 do fit. Has no effect on the CPU. REQUIRES: equal on
  /// all ranks.
  std::size_t peer_window_bytes = std::size_t{64} << 20;
  /// The kv rank that holds each page rank's pages. Empty: Membership(kv_parallel). REQUIRES: equal
  /// on all ranks, and of kv_parallel ranks.
  std::optional<Membership> membership{};
};

/// One rank's place in the mesh, and its communicators. World rank r has the kv rank r /
/// head_parallel and the head rank r % head_parallel:
///
///     head rank ->   0    1
///     kv rank 0      r0   r1      the ranks of a row hold different heads of the same pages
///     kv rank 1      r2   r3      the ranks of a column hold different pages of the same heads
///
/// Owns the communicators, the threads and the device group together with the caches made on it:
/// the caches keep them alive if the mesh is moved or destroyed first. (A communicator that the
/// caller keeps must outlive the mesh and its caches.) Movable. Destroying a mesh with its own NCCL
/// group is collective: see DeviceGroup.
class Mesh {
 public:
  /// Makes this rank's mesh. On the CPU it only splits communicators. On GPUs it also makes the
  /// NCCL group of the kv ranks, which takes about a second, and their windows (see DeviceGroup).
  /// REQUIRES: equal options on all ranks, except `threads` and `deadline`.
  /// @throws InvalidArgument if head_parallel does not divide the ranks, an option is invalid, or
  /// two ranks' options or kinds of device differ (on every rank, naming rank and field);
  /// Unsupported for a device that this build does not have; OutOfThreads; on GPUs also Timeout,
  /// PeerLost and NcclError.
  /// Collective.
  explicit Mesh(std::unique_ptr<Communicator> world, const MeshOptions& options = {});
  /// The same over a communicator that the caller keeps alive.
  explicit Mesh(Communicator& world, const MeshOptions& options = {});
  Mesh(Mesh&&) noexcept = default;
  Mesh& operator=(Mesh&&) noexcept = default;

  /// Makes a mesh of all processes of the job: see make_launched_communicator (launcher.hpp). The
  /// launcher also says which GPU and which share of the machine's cores the rank uses.
  /// REQUIRES: under mpirun, an MpiSession is alive.
  /// @throws also the errors of make_launched_communicator.
  /// Collective.
  static Mesh from_launcher(const MeshOptions& options = {});

  int size() const { return world_->size(); }
  int kv_parallel() const { return kv_->size(); }
  int head_parallel() const { return head_->size(); }
  Rank rank() const { return world_->rank(); }
  /// This rank's position along kv_parallel: its rank in kv_comm().
  Rank kv_rank() const { return kv_->rank(); }
  /// The rank in the `PageId`s of this rank's pages; equal to kv_rank() unless the options gave
  /// another membership.
  PageRank page_rank() const { return membership_->page_rank(kv_rank()); }
  const Membership& membership() const { return *membership_; }
  int head_rank() const { return head_->rank().value; }

  /// All ranks.
  Communicator& world() { return *world_; }
  /// The ranks with this rank's heads and other pages: they combine their partials.
  Communicator& kv_comm() { return *kv_; }
  /// The ranks with this rank's pages and other heads.
  Communicator& head_comm() { return *head_; }
  ThreadPool& threads() { return *threads_; }
  /// The device on which caches keep their pages, and tensors must be. Ranks of a node share
  /// GPUs if the node has fewer GPUs than ranks.
  Device device() const { return device_; }
  /// The kv ranks' devices, and their NCCL group if they have one, for the combine. Sends nothing.
  DeviceGroup& device_group() { return *group_; }

  /// DeviceGroup::wait: blocks until the device has done all work on `stream`, at most for the
  /// deadline of kv_comm().
  /// @throws Timeout, NcclError; Error if the device failed.
  void wait(Stream stream, std::string_view operation) { group_->wait(stream, operation); }
  /// DeviceGroup::wait_until: blocks in the same way until `is_done` returns true, for example for
  /// an event. An exception from `is_done` breaks the NCCL group.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation) {
    group_->wait_until(is_done, operation);
  }

 private:
  friend class ExternalPool;
  friend class KvCache;
  friend class PagedAttention;

  /// A copy that shares everything with this mesh, for a cache.
  /// @throws InvalidArgument if this mesh has been moved from.
  Mesh share() const;
  Mesh(const Mesh&) = default;

  void arrange(const MeshOptions& options);

  std::shared_ptr<Communicator> owned_world_;
  Communicator* world_;
  std::shared_ptr<Communicator> kv_;
  std::shared_ptr<Communicator> head_;
  std::shared_ptr<const Membership> membership_;
  std::shared_ptr<ThreadPool> threads_;
  Device device_;
  std::shared_ptr<DeviceGroup> group_;
};

/// Runs `body` on `ranks` threads of this process, each with its own mesh; see run_loopback.
void run_on_threads(int ranks, const std::function<void(Mesh&)>& body,
                    const MeshOptions& options = {});

}  // namespace kvmesh
