// What the tests need of the MPI communicator beyond its public form.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// As make_mpi_communicator(), splitting messages longer than `chunk_bytes`. MPI counts in int, so
/// real messages are split at 1 GiB; a test of the splitting wants to do with less, and one of the
/// deadline with less than a minute.
std::unique_ptr<Communicator> make_chunked_mpi_communicator(
    std::size_t chunk_bytes, std::chrono::milliseconds deadline = std::chrono::seconds(60));

}  // namespace kvmesh
