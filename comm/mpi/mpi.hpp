// Parts of the MPI communicator and session that tests and each other need beyond the public form.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// As make_mpi_communicator(), splitting messages longer than `chunk_bytes`. MPI counts in int, so
/// messages are split at 1 GiB; tests split earlier.
std::unique_ptr<Communicator> make_chunked_mpi_communicator(
    std::size_t chunk_bytes, std::chrono::milliseconds deadline = std::chrono::seconds(60));

/// Throws Unsupported if MPI provides less than MPI_THREAD_SERIALIZED: a communicator may be used
/// by any thread, one at a time.
void check_thread_level(int provided);

/// Returns true between the start and the end of MPI.
bool mpi_is_alive();

}  // namespace kvmesh
