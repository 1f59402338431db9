#include "kvmesh/mesh.hpp"

#include <sched.h>

#include <algorithm>
#include <string>

#include "comm/combine/choice/agreed_table.hpp"
#include "comm/combine/choice/combine_ways.hpp"
#include "comm/common/named.hpp"
#include "core/check.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/launcher.hpp"
#include "runtime/mesh/mesh_agreement.hpp"

namespace kvmesh {
namespace {

int usable_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores));
}

// This process's place among the ranks of its machine, as its launcher says. Empty for worlds that
// the launcher did not make: of threads, or an engine's own.
Launch launch_of(const Communicator& world) {
  const bool is_of_processes = world.kind() == "tcp" || world.kind() == "mpi";
  return is_of_processes ? launch_from_environment() : Launch{};
}

// The number of ranks that share this machine's cores; all ranks if the launcher does not say.
int ranks_on_this_node(const Communicator& world) {
  return std::max(1, launch_of(world).local_size.value_or(world.size()));
}

int rank_on_this_node(const Communicator& world) {
  return launch_of(world).local_rank.value_or(world.rank().value);
}

Device device_for(const MeshOptions& options, const Communicator& world) {
  if (options.device == DeviceChoice::kCpu) return {};
  const int gpus = cuda_device_count();
  if (gpus > 0) {
    const int gpu = options.gpu.value_or(rank_on_this_node(world) % gpus);
    require(gpu >= 0 && gpu < gpus, "mesh: GPU {} of {}", gpu, gpus);
    return {DeviceKind::kCuda, gpu};
  }
  if (options.device == DeviceChoice::kAuto) return {};
  throw Unsupported(
      "no CUDA device: this build has no CUDA backend or this machine no GPU; use the "
      "device 'cpu' or 'auto'");
}

int threads_for(const MeshOptions& options, const Communicator& world) {
  if (options.threads > 0) return options.threads;
  return std::max(1, usable_cores() / ranks_on_this_node(world));
}

/// Checks a rank's own options and variables. Returns its device.
Device checked_device(const MeshOptions& options, const Communicator& world) {
  require(options.device <= DeviceChoice::kCuda, "mesh: device choice {} is not valid",
          static_cast<int>(options.device));
  const int heads = options.head_parallel;
  require(heads > 0 && world.size() % heads == 0, "mesh: head_parallel {} does not divide {} ranks",
          heads, world.size());
  require(world.size() / heads <= PageId::kMaxRanks, "mesh: {} ranks along kv_parallel, at most {}",
          world.size() / heads, PageId::kMaxRanks);
  require(options.threads >= 0, "mesh: {} threads", options.threads);
  static_cast<void>(way_of_environment());
  static_cast<void>(table_use_of_environment());
  return device_for(options, world);
}

/// REQUIRES: a head_parallel that divides the ranks.
std::shared_ptr<const Membership> members_for(const MeshOptions& options, int ranks) {
  const int kv_ranks = ranks / options.head_parallel;
  auto members =
      std::make_shared<const Membership>(options.membership.value_or(Membership(kv_ranks)));
  require(members->size() == kv_ranks, "mesh: a membership of {} ranks, kv_parallel is {}",
          members->size(), kv_ranks);
  return members;
}

}  // namespace

DeviceChoice device_choice_from(std::string_view text) {
  if (text == "auto") return DeviceChoice::kAuto;
  if (text == "cpu") return DeviceChoice::kCpu;
  if (text == "cuda") return DeviceChoice::kCuda;
  throw InvalidArgument(fmt::format("device '{}' is none of auto, cpu, cuda", text));
}

Mesh::Mesh(std::unique_ptr<Communicator> world, const MeshOptions& options)
    : owned_world_(std::move(world)), world_(owned_world_.get()) {
  arrange(options);
}

Mesh::Mesh(Communicator& world, const MeshOptions& options) : world_(&world) { arrange(options); }

Mesh Mesh::share() const {
  require(kv_ != nullptr, "mesh: it has been moved from");
  return *this;
}

Mesh Mesh::from_launcher(const MeshOptions& options) {
  return Mesh(options.deadline ? make_launched_communicator(*options.deadline)
                               : make_launched_communicator(),
              options);
}

void Mesh::arrange(const MeshOptions& options) {
  require(world_ != nullptr, "mesh: no communicator");
  membership_ = std::make_shared<const Membership>(1);  // until the options are checked
  std::exception_ptr refusal;
  try {
    if (options.deadline) {  // communicators split from it inherit it
      world_->set_deadline(checked_deadline(*options.deadline));
    }
    device_ = checked_device(options, *world_);
    use_device(device_);
    membership_ = members_for(options, world_->size());
    threads_ = std::make_unique<ThreadPool>(threads_for(options, *world_));
  } catch (const Error&) {
    refusal = std::current_exception();
  }
  const std::vector<std::uint64_t> hosts =
      agree_on_mesh(*world_, options, *membership_, device_, refusal);
  const int heads = options.head_parallel;
  const int kv_rank = rank().value / heads, head_rank = rank().value % heads;
  kv_ = split_named(*world_, head_rank, kv_rank);
  head_ = split_named(*world_, kv_rank, head_rank);
  group_ = std::make_shared<DeviceGroup>(kv_, device_, options.makes_nccl,
                                         kv_->size() > 1 ? options.peer_window_bytes : 0);
  std::vector<std::uint64_t> kv_hosts;
  for (int r = rank().value % heads; r < size(); r += heads) {
    kv_hosts.push_back(hosts[static_cast<std::size_t>(r)]);
  }
  group_->set_hosts(host_layout_of(kv_hosts));
  group_->prepare_ways();
}

void run_on_threads(int ranks, const std::function<void(Mesh&)>& body, const MeshOptions& options) {
  run_loopback(ranks, [&](Communicator& world) {
    Mesh mesh(world, options);
    body(mesh);
  });
}

}  // namespace kvmesh
