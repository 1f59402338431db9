// Whether a launcher of MPI started this process: asked also in builds without MPI, to say so.
#include <algorithm>
#include <array>
#include <cstdlib>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

bool MpiSession::launched_by_mpirun() {
  constexpr std::array kLauncherVariables = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK",
                                             "PMIX_RANK", "MPI_LOCALNRANKS"};
  return std::any_of(kLauncherVariables.begin(), kLauncherVariables.end(),
                     [](const char* variable) { return std::getenv(variable) != nullptr; });
}

}  // namespace kvmesh
