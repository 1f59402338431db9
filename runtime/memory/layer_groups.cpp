#include "runtime/memory/layer_groups.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.hpp"
#include "kernels/exact_attention.hpp"
#include "runtime/memory/head_scales.hpp"

namespace kvmesh {
namespace {

std::int64_t pages_of(const LayerGroup& group, std::int64_t pages_per_rank) {
  const double pages = std::ceil(group.page_share * static_cast<double>(pages_per_rank));
  return static_cast<std::int64_t>(
      std::min(pages, static_cast<double>(PageId::kMaxPagesPerRank) + 1));  // which is refused
}

/// A sequence has one state, so one page must hold all of its tokens.
constexpr int kStatePageTokens = std::numeric_limits<int>::max();

void become_states(CacheOptions& options, std::int64_t bytes) {
  require(bytes >= 16 && bytes % 16 == 0 && bytes / 4 <= std::numeric_limits<int>::max(),
          "cache: a layer group's state_bytes is {}, must be a positive multiple of 16 below 2^33",
          bytes);
  options.state_bytes = bytes;
  options.page_size = kStatePageTokens;
  options.window = 0;
}

/// `options` as those of the group alone.
CacheOptions options_of(const LayerGroup& group, CacheOptions options) {
  require(group.page_share > 0 && std::isfinite(group.page_share),
          "cache: a layer group's page_share is {}", group.page_share);
  options.layers = static_cast<int>(group.layers.size());
  if (group.q_heads != 0) options.q_heads = group.q_heads;
  if (group.kv_heads != 0) options.kv_heads = group.kv_heads;
  if (group.k_dim != 0) options.v_dim = options.k_dim = group.k_dim;
  if (group.v_dim != 0) options.v_dim = group.v_dim;
  options.dtype = group.dtype.value_or(options.dtype);
  options.page_kind = group.page_kind.value_or(options.page_kind);
  options.scales = group.scales.value_or(options.scales);
  options.window = group.window;
  options.pages_per_rank = pages_of(group, options.pages_per_rank);
  if (group.state_bytes != 0) become_states(options, group.state_bytes);
  return options;
}

}  // namespace

std::vector<std::vector<int>> layers_of_groups(const CacheOptions& options) {
  require(options.layers > 0 && options.layers <= kMostLayers, "cache: {} layers, must be 1 to {}",
          options.layers, kMostLayers);
  std::vector<std::vector<int>> groups(1);
  std::vector<bool> is_named(static_cast<std::size_t>(options.layers));
  for (const LayerGroup& group : options.groups) {
    require(!group.layers.empty(), "cache: a layer group without layers");
    for (const int layer : group.layers) {
      require(layer >= 0 && layer < options.layers, "cache: layer {} of a group, of {}", layer,
              options.layers);
      require(!is_named[static_cast<std::size_t>(layer)], "cache: layer {} is in two groups",
              layer);
      is_named[static_cast<std::size_t>(layer)] = true;
    }
    groups.push_back(group.layers);
  }
  for (int layer = 0; layer < options.layers; ++layer) {
    if (!is_named[static_cast<std::size_t>(layer)]) groups[0].push_back(layer);
  }
  require(!groups[0].empty(),
          "cache: groups name all {} layers: leave those of the first to the "
          "cache's own options",
          options.layers);
  return groups;
}

std::vector<CacheOptions> options_of_groups(const CacheOptions& options) {
  CacheOptions first = options;
  first.groups.clear();
  if (first.v_dim == 0) first.v_dim = first.k_dim;
  first.layers = static_cast<int>(layers_of_groups(options)[0].size());
  std::vector<CacheOptions> groups{first};
  for (const LayerGroup& group : options.groups) groups.push_back(options_of(group, first));
  return groups;
}

void check_reproducible_on_gpu(const CacheOptions& options) {
  for (const CacheOptions& group : options_of_groups(options)) {
    if (group.state_bytes > 0 || gpu_has_exact_attention(group.dtype, group.k_dim, group.v_dim)) {
      continue;
    }
    throw Unsupported(fmt::format(
        "cache: reproducible, on GPUs, is for pages of float16 and bfloat16 whose dims are "
        "multiples of 8, keys of up to 576 and values of up to 512, not for {} with {} and {}",
        name(group.dtype), group.k_dim, group.v_dim));
  }
}

std::vector<std::int64_t> pages_of_groups(CacheOptions options, std::int64_t pages_per_rank) {
  options.pages_per_rank = pages_per_rank;
  std::vector<std::int64_t> pages;
  for (const CacheOptions& group : options_of_groups(options))
    pages.push_back(group.pages_per_rank);
  return pages;
}

LocalShape local_shape(const Mesh& mesh, const CacheOptions& options) {
  return {.attention = {.q_heads = options.q_heads / mesh.head_parallel(),
                        .kv_heads = options.kv_heads / mesh.head_parallel(),
                        .k_dim = options.k_dim,
                        .v_dim = options.v_dim,
                        .page_size = options.page_size},
          .format = {.kind = options.page_kind, .dtype = options.dtype, .scales = options.scales},
          .pages = options.pages_per_rank};
}

PageFormat page_format(const LocalShape& shape, const CacheOptions& group) {
  if (group.state_bytes == 0) return make_page_format(shape.attention, shape.format);
  const auto elements = static_cast<int>(group.state_bytes / 4);
  return {.heads = 1, .page_size = 1, .planes = {{"state", Dtype::kFloat32, elements}}};
}

PoolLayout pool_layout(const Mesh& mesh, const CacheOptions& options) {
  std::vector<PoolGroup> groups;
  const std::vector<std::vector<int>> layers = layers_of_groups(options);
  for (const CacheOptions& group : options_of_groups(options)) {
    const LocalShape shape = local_shape(mesh, group);
    groups.push_back({.format = page_format(shape, group),
                      .pages = shape.pages,
                      .layers = layers[groups.size()],
                      .head_scales = std::ssize(head_scales_of(mesh, group))});
  }
  return PoolLayout(std::move(groups), mesh.device());
}

std::int64_t pages_within(std::int64_t bytes, const Mesh& mesh, CacheOptions options) {
  const auto granule = static_cast<std::int64_t>(SharedMemory::granule(mesh.device()));
  const std::int64_t room = bytes / granule * granule;
  const auto size_of = [&](std::int64_t pages) {
    options.pages_per_rank = pages;
    return pool_layout(mesh, options).size_bytes();
  };
  const auto fits = [&](std::int64_t pages) {
    try {
      return size_of(pages) <= room;
    } catch (const InvalidArgument&) {  // more than 63 bits
      return false;
    }
  };
  if (size_of(1) > room) return 0;
  std::int64_t most = 1, too_many = PageId::kMaxPagesPerRank + std::int64_t{1};
  while (most + 1 < too_many) {
    const std::int64_t middle = (most + too_many) / 2;
    (fits(middle) ? most : too_many) = middle;
  }
  return most;
}

}  // namespace kvmesh
