#include <fmt/format.h>

#include "comm/launcher/environment.hpp"
#include "kvmesh/communicator.hpp"

namespace kvmesh {
namespace {

std::unique_ptr<Communicator> meet_by_tcp(const Launch& launch,
                                          std::chrono::milliseconds deadline) {
  TcpOptions options = tcp_options_of(launch);
  options.deadline = deadline;
  return make_tcp_communicator(options);
}

// All processes that MPI has started; null if MPI does not run.
std::unique_ptr<Communicator> world_of_mpi(const Launch& launch,
                                           std::chrono::milliseconds deadline) {
  try {
    return make_mpi_communicator(deadline);
  } catch (const Unsupported&) {
    if (launch.by_mpi()) throw;
    return nullptr;
  }
}

std::string told_by(const Launch& launch) {
  if (launch.size == 0)
    return fmt::format("{} started this process as rank {}", name(launch.launcher), launch.rank);
  return fmt::format("{} started {} ranks, this one as rank {}", name(launch.launcher), launch.size,
                     launch.rank);
}

void require_all_of(const Launch& launch, const Communicator& world) {
  if (launch.rank < world.size() && launch.size <= world.size()) return;
  const std::string mpi = mpi_library();
  throw RendezvousError(fmt::format(
      "{}, but the job that {} sees has {}: {}set KVMESH_RENDEZVOUS=host:port on every rank, so "
      "that "
      "the ranks meet by TCP where rank 0 listens",
      told_by(launch), world.kind() == "mpi" ? "MPI" : "kvmesh", world.size(),
      mpi.empty() ? "" : fmt::format("start the program with the mpirun of {}, or ", mpi)));
}

}  // namespace

std::unique_ptr<Communicator> make_launched_communicator(std::chrono::milliseconds deadline) {
  const Launch launch = launch_from_environment();
  const bool is_told_to = launch.by_tcp && launch.launcher != Launcher::kTorchrun &&
                          launch.launcher != Launcher::kSlurm;
  if (is_told_to) return meet_by_tcp(launch, deadline);
  std::unique_ptr<Communicator> world = world_of_mpi(launch, deadline);
  const bool is_alone = !world || world->size() == 1;
  if (is_alone && launch.size > 1 && !launch.host.empty()) return meet_by_tcp(launch, deadline);
  if (!world) world = make_single_communicator();
  require_all_of(launch, *world);
  return world;
}

}  // namespace kvmesh
