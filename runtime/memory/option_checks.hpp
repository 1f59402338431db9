// The checks of a cache's options on one rank, before the ranks compare them.
#pragma once

#include "runtime/memory/layer_groups.hpp"

namespace kvmesh {

/// Checks the options of one group of layers. @throws InvalidArgument that names the value.
void check_options(const Mesh& mesh, const CacheOptions& options);

/// Checks the tiers of a cache. @throws InvalidArgument.
void check_tiers(const CacheOptions& options);

/// Refuses sizes that no kernel supports. Otherwise the first plan would refuse them after it has
/// appended. @throws InvalidArgument; Unsupported.
void check_shape(const LocalShape& shape);

}  // namespace kvmesh
