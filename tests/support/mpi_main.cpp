// The main of test programs that run under mpirun.
#include "tests/support/mpi_tests.hpp"

int main(int argc, char** argv) { return kvmesh::test::run_mpi_tests(argc, argv); }
