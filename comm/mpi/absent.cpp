// MPI's functions in a build without MPI.
#include "kvmesh/communicator.hpp"

namespace kvmesh {
namespace {

[[noreturn]] void throw_unsupported() {
  throw Unsupported(
      "this build of kvmesh has no MPI: configure it where MPI is installed, or let the ranks meet "
      "over TCP (KVMESH_RANK, KVMESH_SIZE, KVMESH_RENDEZVOUS)");
}

}  // namespace

// A session alone is no error: a program makes one before it knows how its ranks meet.
struct MpiSession::State {};

MpiSession::MpiSession(int&, char**&, std::chrono::milliseconds) {}

MpiSession::~MpiSession() = default;

std::unique_ptr<Communicator> make_mpi_communicator(std::chrono::milliseconds) {
  throw_unsupported();
}

std::unique_ptr<Communicator> make_mpi_communicator(const void*, std::chrono::milliseconds) {
  throw_unsupported();
}

std::string mpi_library() { return {}; }

}  // namespace kvmesh
