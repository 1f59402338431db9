// The ranks of a job, arranged as kv_parallel x head_parallel.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "kvmesh/communicator.hpp"
#include "kvmesh/nccl.hpp"
#include "kvmesh/stream.hpp"
#include "kvmesh/tensor.hpp"
#include "kvmesh/thread_pool.hpp"

namespace kvmesh {

/// Which backend a program asks for; kAuto takes a GPU where build and machine have one.
enum class DeviceChoice : std::uint8_t { kAuto, kCpu, kCuda };

/// "auto", "cpu" or "cuda". @throws InvalidArgument.
DeviceChoice device_choice_from(std::string_view text);

struct MeshOptions {
  /// Ranks that hold different heads of the same pages; must divide the number of ranks. The others
  /// along an axis of size / head_parallel hold different pages of the same heads.
  int head_parallel = 1;
  /// Threads of this rank's CPU backend; 0: its share of the cores that the process may use.
  int threads = 0;
  /// Where pages and tensors are. A program that passes host memory wants the CPU.
  DeviceChoice device = DeviceChoice::kCpu;
  /// Of every wait for a peer, that for the others to come included (but for MPI's own start).
  /// Empty: the world's, which is 60 s if nobody said another. It may differ by rank.
  std::optional<std::chrono::milliseconds> deadline{};
};

/// One rank's place in the mesh and its ways to the others. World rank r has the kv rank
/// r / head_parallel and the head rank r % head_parallel:
///
///     head rank ->   0    1
///     kv rank 0      r0   r1      a row shares its pages' numbers, each rank holding other heads
///     kv rank 1      r2   r3      a column shares its heads, each rank holding other pages
///
/// Collective to make: every rank makes its own with equal options. Owns the communicators and the
/// threads, together with the caches made on it: they stay whole where it is moved or ends before
/// them (a communicator that the caller keeps must outlive both). Movable.
///
/// The end of a mesh with an NCCL group of its own is collective, too: where a rank leaves while
/// others are in the last combine, what NCCL was to send them over a network is lost. So there the
/// destructor waits until the devices of all kv ranks are done, but no longer than kv()'s deadline,
/// and for nobody after an error of the group or while an exception passes.
class Mesh {
 public:
  /// @throws InvalidArgument if head_parallel does not divide the ranks, or an option is none;
  /// Unsupported for a device that this build does not have; OutOfThreads.
  explicit Mesh(std::unique_ptr<Communicator> world, const MeshOptions& options = {});
  /// Over a communicator that the caller keeps alive.
  explicit Mesh(Communicator& world, const MeshOptions& options = {});
  Mesh(Mesh&&) noexcept = default;
  Mesh& operator=(Mesh&&) noexcept = default;

  /// All processes of the job: those that meet at KVMESH_RENDEZVOUS where that is set (see
  /// tcp_options_from_environment), else those of mpirun (an MpiSession must be alive), else this
  /// one alone. @throws also what make_tcp_communicator does.
  static Mesh from_launcher(const MeshOptions& options = {});

  int size() const { return world_->size(); }
  int kv_parallel() const { return kv_->size(); }
  int head_parallel() const { return head_->size(); }
  Rank rank() const { return world_->rank(); }
  /// My position along kv_parallel: the rank in the `PageId`s of my pages.
  Rank kv_rank() const { return kv_->rank(); }
  int head_rank() const { return head_->rank().value; }

  /// Everyone.
  Communicator& world() { return *world_; }
  /// The ranks with my heads and other pages: the combine's group.
  Communicator& kv() { return *kv_; }
  /// The ranks with my pages and other heads.
  Communicator& head() { return *head_; }
  ThreadPool& threads() { return *threads_; }
  /// Where caches on this mesh keep their pages, and where tensors must be. Several ranks of a node
  /// share a GPU if there are fewer of them.
  Device device() const { return device_; }
  /// The kv ranks' GPUs as an NCCL group, for the combine. Null on the CPU, without NCCL, and where
  /// two of the ranks share a GPU: then the combine goes by way of the host. (If the environment's
  /// NCCL_HOSTID names another host for each, they may share: NCCL goes through its network
  /// transport.) Collective over `kv` the first time. @throws Timeout, PeerLost, NcclError.
  NcclGroup* gpus();
  /// An engine's own group instead, over the kv ranks in their order: its communicator
  /// (NcclGroup::borrow), or one made from an id that it brings. Before the first cache is made.
  /// A borrowed communicator is the engine's to abort when a wait has failed, and that before the
  /// cache goes. @throws InvalidArgument if the group's size, rank or device is not this mesh's.
  void use_gpus(NcclGroup group);

  /// Waits until the device has done all that was given to `stream`, no longer than kv()'s
  /// deadline: use it instead of CUDA's own waits, which a peer that died in the middle of a
  /// combine would make endless. On the CPU all is done already. @throws Timeout; NcclError; Error
  /// if the device failed.
  void wait(Stream stream, std::string_view operation);
  /// The same, until `is_done` says yes: for events. What it throws breaks the NCCL group.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation);

 private:
  friend class KvCache;

  /// The same mesh once more, for a cache. @throws InvalidArgument if this one has been moved from.
  Mesh share() const;
  Mesh(const Mesh&) = default;

  /// Ends a group when nobody needs its rank any more.
  struct LeaveTogether {
    std::shared_ptr<Communicator> kv;
    int exceptions;  // that passed already when it was made
    void operator()(NcclGroup* group) const;
  };

  void arrange(const MeshOptions& options);
  void own(std::unique_ptr<NcclGroup> group);

  using Gpus = std::optional<std::unique_ptr<NcclGroup, LeaveTogether>>;

  std::shared_ptr<Communicator> owned_world_;
  Communicator* world_;
  std::shared_ptr<Communicator> kv_;
  std::shared_ptr<Communicator> head_;
  std::shared_ptr<ThreadPool> threads_;
  Device device_;
  std::shared_ptr<Gpus> gpus_ = std::make_shared<Gpus>();  // empty: not asked for yet
};

/// Runs `body` on `ranks` threads of this process, each with its own mesh; see run_loopback.
void run_on_threads(int ranks, const std::function<void(Mesh&)>& body,
                    const MeshOptions& options = {});

}  // namespace kvmesh
