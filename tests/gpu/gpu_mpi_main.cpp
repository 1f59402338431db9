// The main of tests under mpirun that need GPUs: without one they are skipped, which CTest reports.
// Several ranks may share a GPU. With --host-a-rank NCCL treats each rank as a host: it uses its
// network transport, which supports ranks that share a GPU. With --peer the ranks combine by stores
// into mapped memory, also where they share a GPU. With --two-hosts the ranks are those of
// two hosts to NCCL and kvmesh, and combine within their host first; ranks of different hosts may
// share a GPU.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "kvmesh/device_memory.hpp"
#include "tests/support/mpi_tests.hpp"
#include "tests/support/nccl_hosts.hpp"
#include "tests/support/skipped.hpp"

int main(int argc, char** argv) {
  if (kvmesh::cuda_device_count() == 0) return kvmesh::test::skip_under_mpirun("no GPU here");
  const auto has_flag = [&](std::string_view flag) {
    return std::find(argv, argv + argc, flag) != argv + argc;
  };
  const bool host_a_rank = has_flag("--host-a-rank"), by_peer = has_flag("--peer");
  const bool two_hosts = has_flag("--two-hosts");
  if (host_a_rank) kvmesh::test::name_nccl_host(std::getenv("OMPI_COMM_WORLD_RANK"));
  if (by_peer) ::setenv("KVMESH_COMBINE_WAY", "peer", 1);
  if (two_hosts) {
    const int rank = std::atoi(std::getenv("OMPI_COMM_WORLD_RANK"));
    const int ranks = std::atoi(std::getenv("OMPI_COMM_WORLD_SIZE"));
    const char* host = rank < ranks / 2 ? "first" : "second";
    ::setenv("KVMESH_HOST", host, 1);
    kvmesh::test::name_nccl_host(host);
    ::setenv("KVMESH_COMBINE_WAY", "hierarchical", 1);
  }
  // Ranks that share a GPU take turns on it.
  if (host_a_rank || by_peer || two_hosts) ::setenv("KVMESH_STEPS", "40", 0);
  return kvmesh::test::run_mpi_tests(argc, argv);
}
