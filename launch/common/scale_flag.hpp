// The flag --kv-scales, which several commands have.
#pragma once

#include <string>

#include "kvmesh/page_format.hpp"

namespace kvmesh::launch {

/// The value for this kind of scales: "per_head".
std::string typed(ScaleKind kind);
/// Parses the value. @throws InvalidArgument.
ScaleKind scale_kind_from(const std::string& text);

}  // namespace kvmesh::launch
