// Scales of float8 pages that have one for each head.
#pragma once

#include <vector>

#include "kvmesh/cache_options.hpp"
#include "kvmesh/mesh.hpp"

namespace kvmesh {

/// Whether a group with these options has float8 pages with this kind of scales.
bool has_scales(const CacheOptions& group, ScaleKind kind);

/// Returns those of this rank's heads: of keys, then of values unless pages are latent; empty
/// without scales per head. REQUIRES: options that check_options accepts.
std::vector<float> head_scales_of(const Mesh& mesh, const CacheOptions& group);

}  // namespace kvmesh
