// The main of tests under mpirun that need GPUs: without one they are skipped, which CTest reports.
// Several ranks may share a GPU. With --host-a-rank NCCL treats each rank as a host: it uses its
// network transport, which supports ranks that share a GPU.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "kvmesh/device_memory.hpp"
#include "tests/support/mpi_tests.hpp"
#include "tests/support/skipped.hpp"

int main(int argc, char** argv) {
  if (kvmesh::cuda_device_count() == 0) {
    std::puts("skipped: no GPU here");
    return kvmesh::test::kSkipped;
  }
  if (std::find(argv, argv + argc, std::string_view("--host-a-rank")) != argv + argc) {
    ::setenv("NCCL_HOSTID", std::getenv("OMPI_COMM_WORLD_RANK"), 1);
    ::setenv("KVMESH_STEPS", "40", 0);  // ranks that share a GPU take turns on it
  }
  return kvmesh::test::run_mpi_tests(argc, argv);
}
