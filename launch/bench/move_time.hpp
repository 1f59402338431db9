// Times of pages that move: within a device, to host memory, and back.
#pragma once

#include "launch/bench/measure.hpp"

namespace kvmesh::bench {

/// Measures kMove, kStore or kLoad of the pages of a batch, all layers together, with a cache of
/// its own, by the host's clock: the operation of KvCache, with its share of planning and waiting.
/// REQUIRES: one kv rank. Collective over the mesh.
Row measure_moves(const WorkloadShape& shape, Mesh& mesh, Machine& machine, const Options& options,
                  Op op);

}  // namespace kvmesh::bench
