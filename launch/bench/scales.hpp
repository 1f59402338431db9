// The scales of float8 pages that `kvmesh bench` measures.
#pragma once

#include "launch/bench/options.hpp"

namespace kvmesh::bench {

/// The scales of a cache of this shape: where there is one for each head, these differ.
KvScales scales_of(const Shape& shape);

}  // namespace kvmesh::bench
