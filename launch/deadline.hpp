// How long a rank of the program waits for the others.
#pragma once

#include <chrono>

#include "kvmesh/mesh.hpp"

namespace kvmesh::launch {

/// For all groups that the rank is in.
inline void set_deadline(Mesh& mesh, std::chrono::milliseconds deadline) {
  for (Communicator* comm : {&mesh.world(), &mesh.kv(), &mesh.head()}) comm->set_deadline(deadline);
}

}  // namespace kvmesh::launch
