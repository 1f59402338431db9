// What the tests need of the MPI communicator beyond its public form.
#pragma once

#include <cstddef>
#include <memory>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// As make_mpi_communicator(), splitting messages longer than `chunk_bytes`. MPI counts in int, so
/// real messages are split at 1 GiB; a test of the splitting wants to do with less.
std::unique_ptr<Communicator> make_chunked_mpi_communicator(std::size_t chunk_bytes);

}  // namespace kvmesh
