// Running the tests of a program that is started by mpirun.
#pragma once

namespace kvmesh::test {

/// Starts MPI and runs all tests; every process is one rank of every test. Returns the exit status:
/// 0 if none failed. Prints a line if tests ran and every rank skipped all of them (skipped.hpp).
int run_mpi_tests(int argc, char** argv);

}  // namespace kvmesh::test
