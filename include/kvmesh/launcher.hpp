// How this process was started: the variables of all launchers are read in one place.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kvmesh/api.h"
#include "kvmesh/communicator.hpp"

namespace KVMESH_API kvmesh {

/// The program that started the ranks of a job. docs/launching.md lists the variables of each.
enum class Launcher : std::uint8_t {
  kNone,      ///< nothing: the process runs alone
  kByHand,    ///< KVMESH_RANK, KVMESH_SIZE and KVMESH_RENDEZVOUS
  kTorchrun,  ///< torchrun, and others that set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
  kOpenMpi,   ///< mpirun of Open MPI
  kPmi,       ///< mpiexec of MPICH, Intel MPI and MVAPICH; srun --mpi=pmi2
  kPmix,      ///< srun --mpi=pmix
  kSlurm,     ///< srun without MPI
};

/// Returns "Open MPI", "Slurm", ...; "" for kNone.
std::string_view name(Launcher launcher);

/// A process's place in its job.
struct Launch {
  Launcher launcher = Launcher::kNone;
  int rank = 0;
  int size = 1;  ///< 0: the launcher does not set it (PMIx outside of Slurm)
  /// This rank's number among the ranks of its machine, and the number of these ranks.
  std::optional<int> local_rank{};
  std::optional<int> local_size{};
  /// An id that no other job of this launcher has; may be empty.
  std::string job{};
  /// The address at which rank 0 can listen for the others. Empty if the environment has none.
  std::string host{};
  std::uint16_t port = 0;
  /// Whether the ranks meet by TCP at `host`: KVMESH_RENDEZVOUS is set, or torchrun or Slurm
  /// started several ranks.
  bool by_tcp = false;

  /// Returns true if the launcher is one of MPI's and the ranks do not meet by TCP.
  bool by_mpi() const {
    return !by_tcp && (launcher == Launcher::kOpenMpi || launcher == Launcher::kPmi ||
                       launcher == Launcher::kPmix);
  }
};

/// Reads this process's place from the environment. An empty variable counts as not set. If several
/// launchers have set variables (mpirun inside a Slurm job), the innermost one counts.
/// @throws InvalidArgument, which names the variable that is missing or invalid.
Launch launch_from_environment();

/// Returns this process's rank alone, for messages: also if other variables are missing or invalid.
/// Returns empty if no launcher has set one.
std::optional<int> rank_for_messages();

/// Makes a communicator over all processes of the job: by TCP if `Launch::by_tcp`, else over
/// MPI_COMM_WORLD if MPI runs, else of this process alone. Where MPI runs but has a world of one
/// (the launcher and this MPI library do not fit), the ranks of a Slurm job meet by TCP.
/// REQUIRES: under an MPI launcher, an MpiSession is alive.
/// @throws RendezvousError if the launcher started more ranks than the communicator would have: it
/// says what to do; also the errors of launch_from_environment, make_tcp_communicator and
/// make_mpi_communicator.
/// Collective.
std::unique_ptr<Communicator> make_launched_communicator(
    std::chrono::milliseconds deadline = std::chrono::seconds(60));

}  // namespace kvmesh
