// The options of a KvCache.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/api.h"
#include "kvmesh/page_format.hpp"
#include "kvmesh/tiers.hpp"

namespace KVMESH_API kvmesh {

/// Layers that differ from the rest of the model in what their pages hold, and have page tables of
/// their own.
struct LayerGroup {
  std::vector<int> layers{};  ///< their numbers, from 0
  /// 0 or unset: the cache's. If k_dim alone is given, v_dim is equal to it.
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  std::optional<Dtype> dtype{};
  std::optional<PageKind> page_kind{};
  std::optional<KvScales> scales{};
  /// The number of positions that a query of these layers sees, its own included; 0: no window,
  /// also where the cache has one. See CacheOptions::window.
  std::int64_t window = 0;
  /// The number of the group's pages per rank is this times the cache's `pages_per_rank`, rounded
  /// up.
  double page_share = 1;
  /// Not 0: a state group. Each of its layers holds this many bytes per sequence instead of keys
  /// and values: the state of linear attention or of a Mamba layer, which the model computes
  /// (KvCache::sequence_state). With head_parallel, each rank of a row of the mesh has a state of
  /// this size of its own. A sequence's states take one page; heads, dims, types and window are
  /// ignored. With a prefix cache, publish keeps a state if the sequence's tokens fill whole pages
  /// (KvCache::publish). REQUIRES: a multiple of 16 below 2^33; no tiers.
  std::int64_t state_bytes = 0;
};

/// A value of CacheOptions::home_threshold_tokens: the number of tokens from which one sequence,
/// alone in a step, takes less time on all ranks than on one, by what was measured. It weighs the
/// time to read the keys and values that a rank then need not read against the time of a combine of
/// one query's rows; both times come from the table of ways (docs/design.md). The number is 2048
/// where the table lacks one of them (on CPUs, and where there is no choice of ways) and in
/// reproducible caches, which use no table. It is equal on all ranks, but may differ from machine
/// to machine, and when ways are measured anew. KvCache::options returns it.
inline constexpr std::int64_t kMeasuredHomeThreshold = -2;

/// The options of a cache, equal on every rank except for the amount of memory. Heads are the whole
/// model's; head_parallel divides them. REQUIRES: exactly one of `pages_per_rank`, `bytes` and
/// `memory_fraction` is set (not 0), the same one on every rank; it gives the size of the rank's
/// pools, which may differ by rank.
struct CacheOptions {
  int layers = 1;
  int q_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;  ///< 0: equal to k_dim
  int page_size = 16;
  std::int64_t pages_per_rank = 0;
  std::int64_t bytes = 0;  ///< size of this rank's pools, all layers together
  /// The part of this device's free memory to use, in (0, 1]. Ranks that share a device divide this
  /// part among them.
  double memory_fraction = 0;
  /// The most pages that KvCache::resize can give this rank's pools, whose addresses are reserved;
  /// 0, or fewer than the pools begin with: as many as they begin with. On a GPU their memory then
  /// comes in pieces of at least 2 MiB for each layer and plane; where the driver gives none, the
  /// pools keep the pages that they begin with.
  std::int64_t max_pages_per_rank = 0;
  Dtype dtype = Dtype::kBFloat16;
  /// Latent pages (MLA) hold the key alone: the value is its first v_dim elements.
  PageKind page_kind = PageKind::kKv;
  /// For float8 pages: one number for all keys and one for all values, one of each for every kv
  /// head, or numbers that append computes for each token and head (docs/contracts.md, Numbers).
  KvScales scales{};
  Placement placement = Placement::kBalanced;
  /// See AllocatorOptions. May be kMeasuredHomeThreshold.
  std::int64_t home_threshold_tokens = 2048;
  /// Outputs and LSEs have equal bits on any number of ranks, with any placement, in any batch, and
  /// however prompts are cut into steps: on CPUs of one instruction set, or on GPUs of one compute
  /// capability (compared when the cache is made), for one model of heads, dims and page size;
  /// sizes that are multiples of 16 count as one. On GPUs pages are float16 or bfloat16, and dims
  /// are multiples of 8. Mods that read the batch row see another row in another batch. A row that
  /// sees an infinite value or a NaN, with a weight that float32 does not round to 0, is NaN
  /// throughout. StepPlan::attend_partial and combine are refused: a partial in float32 has rounded
  /// already.
  bool reproducible = false;
  /// Keeps pages of known prefixes for later requests: see KvCache::match_prefix.
  PrefixOptions prefix{};
  /// The tiers to which evicted pages go, and from which they come back.
  TierOptions tiers{};
  /// The number of positions that a query sees, its own included; 0: no window. It is added to the
  /// mask of every plan. Pages that no query of a step or of later steps sees are given up when the
  /// step appends: a sequence then holds window / page_size + 2 pages, rounded up, and those of the
  /// step's own tokens. It cannot be truncated to a length whose next query would see one of them
  /// (but to 0), and no plan may have such a query. Plans have no block masks.
  std::int64_t window = 0;
  /// LayerGroup::state_bytes, in KvCache::group_options. REQUIRES: 0 in a cache's own options.
  std::int64_t state_bytes = 0;
  /// Further groups of layers. All other layers, at least one, are group 0, and have the options
  /// above; those of the groups are numbered from 1. A sequence has one id and one length in all
  /// groups, and pages in each. `pages_per_rank` and `max_pages_per_rank` are those of group 0.
  std::vector<LayerGroup> groups{};
};

}  // namespace kvmesh
