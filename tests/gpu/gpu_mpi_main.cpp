// The main of tests under mpirun that need GPUs: without one they are skipped, which CTest then
// says. Several ranks may share a GPU.
#include <cstdio>

#include "kvmesh/device_memory.hpp"
#include "tests/support/mpi_tests.hpp"

int main(int argc, char** argv) {
  if (kvmesh::cuda_device_count() == 0) {
    std::puts("skipped: no GPU here");
    return 77;  // the test's SKIP_RETURN_CODE, which mpirun hands on
  }
  return kvmesh::test::run_mpi_tests(argc, argv);
}
