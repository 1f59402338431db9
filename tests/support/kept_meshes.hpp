// Meshes that the tests of a program under mpirun share: one on several GPUs takes about a second
// to make.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "kvmesh/mesh.hpp"

namespace kvmesh::test {

/// Ends its meshes after the last test, while MPI still runs.
class KeptMeshes : public testing::Environment {
 public:
  /// Returns the mesh with these options over all ranks, on the rank's GPU. Collective.
  std::shared_ptr<Mesh> get(const MeshOptions& options) {
    const auto kept =
        std::ranges::find_if(meshes_, [&](const Kept& it) { return is_same(it.options, options); });
    if (kept != meshes_.end()) return kept->mesh;
    std::unique_ptr<Communicator> world = make_mpi_communicator();
    world->set_deadline(std::chrono::seconds(120));  // a peer may be compiling
    meshes_.push_back({options, std::make_shared<Mesh>(std::move(world), options)});
    return meshes_.back().mesh;
  }
  void TearDown() override { meshes_.clear(); }

 private:
  struct Kept {
    MeshOptions options;
    std::shared_ptr<Mesh> mesh;
  };
  /// REQUIRES: no other options are set.
  static bool is_same(const MeshOptions& a, const MeshOptions& b) {
    return a.head_parallel == b.head_parallel && a.threads == b.threads &&
           a.membership == b.membership;
  }

  std::vector<Kept> meshes_;
};

/// GoogleTest owns it.
inline KeptMeshes& kept_meshes = *new KeptMeshes;
inline testing::Environment* const kept_meshes_end =
    testing::AddGlobalTestEnvironment(&kept_meshes);

}  // namespace kvmesh::test
