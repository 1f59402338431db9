// The combine of device tensors by way of the host.
#pragma once

#include <vector>

#include "kvmesh/combine.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// Brings the partials to the host, combines them there over the host's communicator, and takes the
/// rows back. Waits for the stream, as Mesh::wait does. It is what ranks that share one
/// GPU can do, where NCCL cannot, and it needs nothing but MPI (or threads).
class StagedCombine {
 public:
  explicit StagedCombine(Mesh& mesh) : mesh_(&mesh), combiner_(mesh.kv()) {}
  void operator()(const Partial& mine, const CombineOptions& options, const CombineOutput& output,
                  Stream stream);

 private:
  Mesh* mesh_;
  Combiner combiner_;
};

}  // namespace kvmesh
