#include "kvmesh/mesh.hpp"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <string>

#include "core/check.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/tcp.hpp"
#include "runtime/mesh/mesh_agreement.hpp"

namespace kvmesh {
namespace {

int usable_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores));
}

// Reads the first variable that is set, as a number.
std::optional<int> number_in(std::initializer_list<const char*> variables) {
  for (const char* variable : variables) {
    if (const char* text = std::getenv(variable)) return std::atoi(text);
  }
  return std::nullopt;
}

// The number of ranks that share this machine's cores, from the launcher; all ranks if it is not
// set.
int ranks_on_this_node(const Communicator& world) {
  std::optional<int> ranks;
  if (world.kind() == "tcp") ranks = number_in({"KVMESH_LOCAL_SIZE"});
  if (world.kind() == "mpi") {
    ranks = number_in({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"});
  }
  return std::max(1, ranks.value_or(world.size()));
}

// This rank's number among the ranks of its machine.
int rank_on_this_node(const Communicator& world) {
  std::optional<int> rank;
  if (world.kind() == "tcp") rank = number_in({"KVMESH_LOCAL_RANK"});
  if (world.kind() == "mpi") {
    rank = number_in({"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"});
  }
  return std::max(0, rank.value_or(world.rank().value));
}

std::unique_ptr<Communicator> communicator_of_launcher(const MeshOptions& options) {
  if (auto tcp = tcp_options_from_environment()) {
    tcp->deadline = options.deadline.value_or(tcp->deadline);
    return make_tcp_communicator(*tcp);
  }
  if (MpiSession::launched_by_mpirun()) return make_mpi_communicator();
  return make_single_communicator();
}

Device device_for(DeviceChoice choice, const Communicator& world) {
  if (choice == DeviceChoice::kCpu) return {};
  const int gpus = cuda_device_count();
  if (gpus > 0) return {DeviceKind::kCuda, rank_on_this_node(world) % gpus};
  if (choice == DeviceChoice::kAuto) return {};
  throw Unsupported(
      "no CUDA device: this build has no CUDA backend or this machine no GPU; use the "
      "device 'cpu' or 'auto'");
}

/// Checks a rank's own options. Returns its device.
Device checked_device(const MeshOptions& options, const Communicator& world) {
  require(options.device <= DeviceChoice::kCuda, "mesh: device choice {} is none",
          static_cast<int>(options.device));
  const int heads = options.head_parallel;
  require(heads > 0 && world.size() % heads == 0, "mesh: head_parallel {} does not divide {} ranks",
          heads, world.size());
  require(world.size() / heads <= PageId::kMaxRanks, "mesh: {} ranks along kv_parallel, at most {}",
          world.size() / heads, PageId::kMaxRanks);
  require(options.threads >= 0, "mesh: {} threads", options.threads);
  return device_for(options.device, world);
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
  return Mesh(communicator_of_launcher(options), options);
}

void Mesh::arrange(const MeshOptions& options) {
  require(world_ != nullptr, "mesh: no communicator");
  std::exception_ptr refusal;
  try {
    if (options.deadline) {  // communicators split from it inherit it
      world_->set_deadline(checked_deadline(*options.deadline));
    }
    device_ = checked_device(options, *world_);
    use_device(device_);
  } catch (const Error&) {
    refusal = std::current_exception();
  }
  agree_on_mesh(*world_, options, device_, refusal);
  const int heads = options.head_parallel;
  kv_ = world_->split(rank().value % heads, rank().value / heads);
  head_ = world_->split(rank().value / heads, rank().value % heads);
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, usable_cores() / ranks_on_this_node(*world_));
  threads_ = std::make_unique<ThreadPool>(threads);
  group_ = std::make_shared<DeviceGroup>(kv_, device_, options.makes_nccl);
}

void run_on_threads(int ranks, const std::function<void(Mesh&)>& body, const MeshOptions& options) {
  run_loopback(ranks, [&](Communicator& world) {
    Mesh mesh(world, options);
    body(mesh);
  });
}

}  // namespace kvmesh
