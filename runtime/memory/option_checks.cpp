#include "runtime/memory/option_checks.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "core/check.hpp"
#include "runtime/memory/head_scales.hpp"

namespace kvmesh {
namespace {

void check_memory(const CacheOptions& options) {
  const int given =
      (options.pages_per_rank != 0) + (options.bytes != 0) + (options.memory_fraction != 0);
  require(given == 1, "cache: give one of pages_per_rank ({}), bytes ({}) and memory_fraction ({})",
          options.pages_per_rank, options.bytes, options.memory_fraction);
  require(options.pages_per_rank >= 0 && options.bytes >= 0,
          "cache: pages_per_rank {} and bytes {} must not be negative", options.pages_per_rank,
          options.bytes);
  require(options.pages_per_rank <= PageId::kMaxPagesPerRank,
          "cache: pages_per_rank {}, at most {}", options.pages_per_rank,
          int{PageId::kMaxPagesPerRank});
  require(options.max_pages_per_rank >= 0 && options.max_pages_per_rank <= PageId::kMaxPagesPerRank,
          "cache: max_pages_per_rank {} is not in [0, {}]", options.max_pages_per_rank,
          int{PageId::kMaxPagesPerRank});
  require(options.memory_fraction >= 0 && options.memory_fraction <= 1,
          "cache: memory_fraction {} must be in (0, 1]", options.memory_fraction);
}

void check_scales(const CacheOptions& options) {
  const KvScales& scales = options.scales;
  require(scales.kind <= ScaleKind::kPerHead, "cache: kind {} of scales is not valid",
          static_cast<int>(scales.kind));
  const auto check = [](float scale) {
    require(scale > 0 && std::isfinite(scale), "cache: the scale {} must be positive and finite",
            scale);
  };
  check(scales.k);
  check(scales.v);
  std::ranges::for_each(scales.k_heads, check);
  std::ranges::for_each(scales.v_heads, check);
  require(scales.kind == ScaleKind::kPerHead || (scales.k_heads.empty() && scales.v_heads.empty()),
          "cache: scales of heads, but their kind is {}", name(scales.kind));
  if (!has_scales(options, ScaleKind::kPerHead)) return;
  require(std::ssize(scales.k_heads) == options.kv_heads,
          "cache: k_heads has {} scales, but must have one for each of {} kv heads",
          scales.k_heads.size(), options.kv_heads);
  const int values = options.page_kind == PageKind::kLatent ? 0 : options.kv_heads;
  require(std::ssize(scales.v_heads) == values,
          "cache: v_heads has {} scales, but must have {} for {} kv heads of {} pages",
          scales.v_heads.size(), values, options.kv_heads, name(options.page_kind));
}

/// The header of a page's file has 16 bits for each of these, and 8 for the number of the group.
void check_files(const CacheOptions& options) {
  require(options.tiers.directory.find('\0') == std::string::npos,
          "cache: the directory of the file tier has a NUL character, after '{}'",
          options.tiers.directory.c_str());
  int kv_heads = options.kv_heads;
  for (const LayerGroup& group : options.groups) kv_heads = std::max(kv_heads, group.kv_heads);
  constexpr int kMost = std::numeric_limits<std::uint16_t>::max();
  require(options.layers <= kMost && kv_heads <= kMost && options.page_size <= kMost &&
              options.groups.size() <= std::numeric_limits<std::uint8_t>::max(),
          "cache: a file tier is for up to {} layers, KV heads, and tokens in a page, and {} layer "
          "groups beside the first, not {}, {}, {}, and {}",
          kMost, std::numeric_limits<std::uint8_t>::max(), options.layers, kv_heads,
          options.page_size, options.groups.size());
}

}  // namespace

void check_options(const Mesh& mesh, const CacheOptions& options) {
  require(options.layers > 0 && options.k_dim > 0 && options.v_dim > 0,
          "cache: layers {}, k_dim {}, v_dim {} must be positive", options.layers, options.k_dim,
          options.v_dim);
  require(options.q_heads > 0 && options.kv_heads > 0 && options.q_heads % options.kv_heads == 0,
          "cache: {} query heads do not divide over {} kv heads", options.q_heads,
          options.kv_heads);
  require(options.kv_heads % mesh.head_parallel() == 0,
          "cache: {} kv heads do not divide over head_parallel {}", options.kv_heads,
          mesh.head_parallel());
  require(is_valid(options.dtype), "cache: element type {} is not valid",
          static_cast<int>(options.dtype));
  require(options.page_kind <= PageKind::kLatent, "cache: page kind {} is not valid",
          static_cast<int>(options.page_kind));
  require(options.page_kind != PageKind::kLatent || options.v_dim <= options.k_dim,
          "cache: values of latent pages are part of the keys, but v_dim {} is over k_dim {}",
          options.v_dim, options.k_dim);
  check_scales(options);
  require(options.placement <= Placement::kPacked, "cache: placement {} is not valid",
          static_cast<int>(options.placement));
  require(
      options.prefix.hash <= PrefixHash::kXxh3 && options.prefix.eviction <= Eviction::kSegmented,
      "cache: prefix hash {} or eviction {} is not valid", static_cast<int>(options.prefix.hash),
      static_cast<int>(options.prefix.eviction));
  require(options.window >= 0, "cache: a window of {}", options.window);
  require(
      options.home_threshold_tokens >= 0 || options.home_threshold_tokens == kMeasuredHomeThreshold,
      "cache: home_threshold_tokens is {}", options.home_threshold_tokens);
  check_memory(options);
}

void check_tiers(const CacheOptions& options) {
  const TierOptions& tiers = options.tiers;
  require(tiers.host_bytes >= 0 && tiers.file_bytes >= 0 && tiers.stores_per_operation >= 1,
          "cache: tiers of {} and {} bytes, {} stores per operation", tiers.host_bytes,
          tiers.file_bytes, tiers.stores_per_operation);
  if (!tiers.enabled()) return;
  require(options.prefix.enabled, "cache: tiers, but the prefix cache is off");
  for (const LayerGroup& group : options.groups)
    require(group.state_bytes == 0, "cache: tiers, of a cache with a state group");
  const auto is_plain = [](char it) {
    return (it >= 'a' && it <= 'z') || (it >= 'A' && it <= 'Z') || (it >= '0' && it <= '9') ||
           it == '.' || it == '_' || it == '-';
  };
  require(
      !tiers.model.empty() && std::ranges::all_of(tiers.model, is_plain),
      "cache: '{}' names a model of the file tier, which may have letters, digits, '.', '_' and "
      "'-'",
      tiers.model);
  if (!tiers.directory.empty()) check_files(options);
}

void check_shape(const LocalShape& shape) {
  const AttentionBatch nothing{
      .q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}};
  AttentionPlan(shape.attention, nothing, {});
}

}  // namespace kvmesh
