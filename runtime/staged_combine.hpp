// The combine of device tensors by way of the host.
#pragma once

#include <vector>

#include "kvmesh/combine.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// Brings the partials to the host, combines them there over the host's communicator, and takes the
/// rows back. Waits for the stream, until the deadline of `comm`. It is what ranks that share one
/// GPU can do, where NCCL cannot, and it needs nothing but MPI (or threads).
class StagedCombine {
 public:
  explicit StagedCombine(Communicator& comm) : comm_(&comm), combiner_(comm) {}
  void operator()(const Partial& mine, const CombineOptions& options, const CombineOutput& output,
                  Stream stream);

 private:
  Communicator* comm_;
  Combiner combiner_;
};

}  // namespace kvmesh
