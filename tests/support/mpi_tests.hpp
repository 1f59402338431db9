// Running the tests of a program that is started by mpirun.
#pragma once

namespace kvmesh::test {

/// Starts MPI and runs all tests; every process is one rank of every test. What main returns.
int run_mpi_tests(int argc, char** argv);

}  // namespace kvmesh::test
