#include "kvmesh/mesh.hpp"

#include <sched.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <optional>
#include <string>

#include "core/check.hpp"
#include "core/cuda/memory.hpp"
#include "core/device_wait.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh {
namespace {

int usable_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores));
}

// The first of the variables that is set, as a number.
std::optional<int> number_in(std::initializer_list<const char*> variables) {
  for (const char* variable : variables) {
    if (const char* text = std::getenv(variable)) return std::atoi(text);
  }
  return std::nullopt;
}

// How many ranks share this machine's cores, as the launcher tells; all of them if it does not.
int ranks_on_this_node(const Communicator& world) {
  std::optional<int> ranks;
  if (world.kind() == "tcp") ranks = number_in({"KVMESH_LOCAL_SIZE"});
  if (world.kind() == "mpi") {
    ranks = number_in({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"});
  }
  return std::max(1, ranks.value_or(world.size()));
}

// This rank's place among those of its machine.
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

// Collective. NCCL refuses two ranks on one GPU, unless it is told that they are on two hosts.
bool nccl_takes(Communicator& comm, Device gpu) {
  using Place = std::array<char, 64>;  // the GPU, and what NCCL is told of the host
  Place mine{};
  const auto end = std::ranges::copy(cuda_memory::identity(gpu.index), mine.begin()).out;
  if (const char* host = std::getenv("NCCL_HOSTID")) {
    const std::string_view name(host);
    std::ranges::copy(name.substr(0, static_cast<std::size_t>(mine.end() - end)), end);
  }
  std::vector<Place> all(static_cast<std::size_t>(comm.size()));
  all_gather(comm, std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)), "gpus");
  std::ranges::sort(all);
  return std::ranges::adjacent_find(all) == all.end();
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
  require(options.device <= DeviceChoice::kCuda, "mesh: device choice {} is none",
          static_cast<int>(options.device));
  if (options.deadline) {  // those split off it have it, too
    world_->set_deadline(checked_deadline(*options.deadline));
  }
  device_ = device_for(options.device, *world_);
  use_device(device_);
  const int heads = options.head_parallel;
  require(heads > 0 && world_->size() % heads == 0,
          "mesh: head_parallel {} does not divide {} ranks", heads, world_->size());
  require(world_->size() / heads <= PageId::kMaxRanks,
          "mesh: {} ranks along kv_parallel, at most {}", world_->size() / heads,
          PageId::kMaxRanks);
  require(options.threads >= 0, "mesh: {} threads", options.threads);
  kv_ = world_->split(rank().value % heads, rank().value / heads);
  head_ = world_->split(rank().value / heads, rank().value % heads);
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, usable_cores() / ranks_on_this_node(*world_));
  threads_ = std::make_unique<ThreadPool>(threads);
}

NcclGroup* Mesh::gpus() {
  if (!*gpus_) {
    const bool possible =
        device_.kind == DeviceKind::kCuda && !nccl_version().empty() && nccl_takes(*kv_, device_);
    own(possible ? std::make_unique<NcclGroup>(*kv_, device_.index) : nullptr);
  }
  return (*gpus_)->get();
}

void Mesh::use_gpus(NcclGroup group) {
  require(device_.kind == DeviceKind::kCuda, "mesh: a group of GPUs for a mesh on the CPU");
  require(!*gpus_, "mesh: it has its group of GPUs already");
  require(
      group.size() == kv_->size() && group.rank() == kv_->rank() && group.device() == device_.index,
      "mesh: a group with rank {} of {} on GPU {}, on the kv axis this is rank {} of {} on {}",
      group.rank().value, group.size(), group.device(), kv_->rank().value, kv_->size(),
      device_.index);
  own(std::make_unique<NcclGroup>(std::move(group)));
}

void Mesh::own(std::unique_ptr<NcclGroup> group) {
  gpus_->emplace(group.release(), LeaveTogether{kv_, std::uncaught_exceptions()});
}

// A rank's own device may be done before the others have what it sends: threads of NCCL's send it
// over networks, and an abort stops them. When all devices are done nothing is under way any more.
void Mesh::LeaveTogether::operator()(NcclGroup* group) const {
  constexpr std::string_view kOperation = "leave the mesh";
  const std::unique_ptr<NcclGroup> owner(group);
  const bool is_whole = group->is_owned() && group->handle() != nullptr;
  if (!is_whole || std::uncaught_exceptions() > exceptions) return;
  try {
    group->set_deadline(kv->deadline());
    group->wait_until(whole_device_done(group->device()), kOperation);
    barrier(*kv, kOperation);
  } catch (const std::exception&) {
    // This rank has had its results. Who still waits for some has an error of its own.
  }
}

void Mesh::wait(Stream stream, std::string_view operation) {
  if (device_.kind == DeviceKind::kCpu) return;
  wait_until([&] { return cuda_memory::is_done(stream, operation); }, operation);
}

void Mesh::wait_until(const std::function<bool()>& is_done, std::string_view operation) {
  if (!*gpus_ || **gpus_ == nullptr) {
    return kvmesh::wait_until(is_done, {rank(), kv_->deadline(), operation});
  }
  (**gpus_)->set_deadline(kv_->deadline());
  (**gpus_)->wait_until(is_done, operation);
}

void run_on_threads(int ranks, const std::function<void(Mesh&)>& body, const MeshOptions& options) {
  run_loopback(ranks, [&](Communicator& world) {
    Mesh mesh(world, options);
    body(mesh);
  });
}

}  // namespace kvmesh
