// Whether a mesh's steps can be captured.
#pragma once

#include <cstdlib>
#include <string_view>

#include "kvmesh/mesh.hpp"

namespace kvmesh::test {

/// True if the combine does not go by way of the host.
inline bool is_captured(Mesh& mesh) {
  const char* way = std::getenv("KVMESH_COMBINE_WAY");
  const bool by_peer = way != nullptr && std::string_view(way) == "peer";
  return mesh.kv_parallel() == 1 || mesh.device_group().nccl() != nullptr ||
         (by_peer && mesh.device_group().peer_window() != nullptr);
}

}  // namespace kvmesh::test
