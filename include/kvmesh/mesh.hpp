// The ranks of a job, arranged as kv_parallel x head_parallel.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "kvmesh/communicator.hpp"
#include "kvmesh/device_group.hpp"
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
  /// Whether the mesh makes an NCCL group of the kv ranks' GPUs, if it can. An engine that brings
  /// its own (DeviceGroup::use_nccl) says false. Equal on all ranks. On the CPU it has no effect.
  bool makes_nccl = true;
};

/// One rank's place in the mesh and its ways to the others. World rank r has the kv rank
/// r / head_parallel and the head rank r % head_parallel:
///
///     head rank ->   0    1
///     kv rank 0      r0   r1      a row shares its pages' numbers, each rank holding other heads
///     kv rank 1      r2   r3      a column shares its heads, each rank holding other pages
///
/// Collective to make: every rank makes its own with equal options. On GPUs that includes the NCCL
/// group of the kv ranks (see DeviceGroup), which takes a second or so; on the CPU only the
/// communicators are split. Owns the communicators, the threads and the device group, together with
/// the caches made on it: they stay whole where it is moved or ends before them (a communicator
/// that the caller keeps must outlive both). Movable. The end of a mesh with an NCCL group of its
/// own is collective, too: see DeviceGroup.
class Mesh {
 public:
  /// @throws InvalidArgument if head_parallel does not divide the ranks, or an option is none;
  /// Unsupported for a device that this build does not have; OutOfThreads; on GPUs also Timeout,
  /// PeerLost and NcclError.
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
  /// The kv ranks' devices, and their NCCL group if they have one, for the combine. Made with the
  /// mesh: sends nothing.
  DeviceGroup& device_group() { return *group_; }

  /// DeviceGroup's: waits until the device has done all work given to `stream`, no longer than
  /// kv()'s deadline. @throws Timeout, NcclError; Error if the device failed.
  void wait(Stream stream, std::string_view operation) { group_->wait(stream, operation); }
  /// The same, until `is_done` returns true: for events. What it throws breaks the NCCL group.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation) {
    group_->wait_until(is_done, operation);
  }

 private:
  friend class KvCache;

  /// The same mesh once more, for a cache. @throws InvalidArgument if this one has been moved from.
  Mesh share() const;
  Mesh(const Mesh&) = default;

  void arrange(const MeshOptions& options);

  std::shared_ptr<Communicator> owned_world_;
  Communicator* world_;
  std::shared_ptr<Communicator> kv_;
  std::shared_ptr<Communicator> head_;
  std::shared_ptr<ThreadPool> threads_;
  Device device_;
  std::shared_ptr<DeviceGroup> group_;
};

/// Runs `body` on `ranks` threads of this process, each with its own mesh; see run_loopback.
void run_on_threads(int ranks, const std::function<void(Mesh&)>& body,
                    const MeshOptions& options = {});

}  // namespace kvmesh
