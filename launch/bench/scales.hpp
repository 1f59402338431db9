// The scales of float8 pages that `kvmesh bench` measures.
#pragma once

#include <string>

#include "launch/bench/options.hpp"

namespace kvmesh::bench {

/// The value of --kv-scales for this kind: "per_head".
std::string typed(ScaleKind kind);
/// Parses the value of --kv-scales. @throws InvalidArgument.
ScaleKind scale_kind_of(const std::string& text);

/// The scales of a cache of this shape: where there is one for each head, these differ.
KvScales scales_of(const Shape& shape);

}  // namespace kvmesh::bench
