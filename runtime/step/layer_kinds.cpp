#include "runtime/step/layer_kinds.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "kernels/attend_checks.hpp"

namespace kvmesh {
namespace {

/// [layer] Index into `kinds`, or -1 for a layer of no kind.
std::vector<int> kinds_of_layers(std::span<const LayerKind> kinds, std::size_t layers) {
  std::vector<int> kind_of(layers, -1);
  for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
    check_scale(kinds[kind].scale);
    for (const int layer : kinds[kind].layers) {
      require(layer >= 0 && static_cast<std::size_t>(layer) < layers,
              "plan: layer {} of a kind, of {}", layer, layers);
      int& at = kind_of[static_cast<std::size_t>(layer)];
      require(at < 0, "plan: layer {} is in two kinds", layer);
      at = static_cast<int>(kind);
    }
  }
  return kind_of;
}

}  // namespace

LayerKinds::LayerKinds(std::span<const std::size_t> group_of_layer, std::size_t groups,
                       const PlanOptions& options)
    : of_group(groups), of_layer(group_of_layer.size()) {
  require(options.kinds.empty() || options.block_mask == nullptr,
          "plan: a block mask, of a plan with several kinds of layers");
  const std::vector<int> kind_of = kinds_of_layers(options.kinds, of_layer.size());
  std::vector<std::vector<int>> made(of_group.size());  // the kinds that of_group has
  for (std::size_t layer = 0; layer < of_layer.size(); ++layer) {
    const std::size_t group = group_of_layer[layer];
    const auto known = std::ranges::find(made[group], kind_of[layer]);
    of_layer[layer] = static_cast<std::size_t>(known - made[group].begin());
    if (known != made[group].end()) continue;
    made[group].push_back(kind_of[layer]);
    if (kind_of[layer] >= 0) {
      const LayerKind& kind = options.kinds[static_cast<std::size_t>(kind_of[layer])];
      of_group[group].push_back({.scale = kind.scale, .mask = kind.mask, .score = kind.score});
    } else {
      // Partial blocks are masked with the mod that the block mask was made from.
      of_group[group].push_back(
          {.scale = options.scale,
           .mask = options.block_mask ? options.block_mask->mask_mod() : options.mask,
           .score = options.score});
    }
  }
}

}  // namespace kvmesh
