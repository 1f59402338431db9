// The kinds of layers of a step.
#pragma once

#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"

namespace kvmesh {

/// The attention options of a plan, per group: one entry for each kind of layer that occurs in the
/// group.
struct LayerKinds {
  /// @throws InvalidArgument if the kinds do not fit the layers or the other options.
  LayerKinds(std::span<const std::size_t> group_of_layer, std::size_t groups,
             const PlanOptions& options);

  std::vector<std::vector<AttentionOptions>> of_group;
  std::vector<std::size_t> of_layer;  ///< [layer] index into its group's entry of of_group
};

}  // namespace kvmesh
