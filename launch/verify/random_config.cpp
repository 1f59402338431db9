#include "launch/verify/random_config.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace kvmesh::verify {
namespace {

const std::vector<Dtype> kDtypes{Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16,
                                 Dtype::kFloat8E4M3};
const std::vector<Placement> kPlacements{Placement::kBalanced, Placement::kStriped,
                                         Placement::kPacked};

const std::vector<ScaleKind> kScaleKinds{ScaleKind::kPerTokenAndHead, ScaleKind::kPerTensor,
                                         ScaleKind::kPerHead};

// Pages a rank for about `tokens` in all; at least one.
std::int64_t pages_for(std::int64_t tokens, int page_size, int ranks) {
  return std::max<std::int64_t>(1, tokens / (std::int64_t{page_size} * ranks));
}

/// Numbers that make some elements saturate, where append computes none.
KvScales random_scales(Random& random, ScaleKind kind, int kv_heads, PageKind pages) {
  KvScales scales{.kind = kind};
  if (scales.kind == ScaleKind::kPerTensor) {
    scales.k = 0x1p-9f;
    scales.v = 0x1p-8f;
  }
  if (scales.kind != ScaleKind::kPerHead) return scales;
  for (int head = 0; head < kv_heads; ++head) {
    const auto size = [&] { return 0x1p-9f * (1.5f + random.real() / 2); };
    scales.k_heads.push_back(size());
    if (pages == PageKind::kKv) scales.v_heads.push_back(2 * size());
  }
  return scales;
}

CaseConfig long_config(Random& random, const Mesh& mesh) {
  CaseConfig config{.cache = {.layers = 1,
                              .q_heads = 2 * mesh.head_parallel(),
                              .kv_heads = mesh.head_parallel(),
                              .k_dim = 16,
                              .page_size = random.pick(std::vector{16, 32, 64})},
                    .steps = 3,
                    .max_sequences = 2,
                    .max_append = 1500 * mesh.kv_parallel(),
                    .max_queries = 2};
  config.cache.pages_per_rank =
      pages_for(4 * config.max_append, config.cache.page_size, mesh.kv_parallel());
  config.cache.home_threshold_tokens = random.integer(0, config.max_append);
  return config;
}

CaseConfig short_config(Random& random, const Mesh& mesh) {
  const int kv_heads =
      mesh.head_parallel() * static_cast<int>(random.integer(1, mesh.head_parallel() > 1 ? 2 : 4));
  const std::vector<int> dims{1, 5, 8, 16, 24, 33, 64, 80, 128};
  CaseConfig config{.cache = {.layers = static_cast<int>(random.integer(1, 3)),
                              .q_heads = kv_heads * random.pick(std::vector{1, 2, 3, 4, 7}),
                              .kv_heads = kv_heads,
                              .k_dim = random.one_in(25) ? 576 : random.pick(dims),
                              .page_size = random.pick(std::vector{1, 2, 3, 4, 7, 8, 16, 32})},
                    .steps = random.integer(5, 16),
                    .max_sequences = random.integer(1, 7),
                    .max_append = random.integer(1, 40),
                    .max_queries = random.integer(1, 12)};
  if (random.one_in(3)) config.cache.v_dim = random.pick(dims);
  config.cache.pages_per_rank =
      pages_for(random.integer(20, 300), config.cache.page_size, mesh.kv_parallel());
  config.cache.home_threshold_tokens = random.integer(0, 64);
  return config;
}

/// Latent rows of DeepSeek's models, which are large: few tokens of few sequences.
CaseConfig mla_config(Random& random, const Mesh& mesh) {
  CaseConfig config{
      .cache = {.q_heads = random.pick(std::vector{16, 128}),
                .kv_heads = 1,
                .k_dim = 576,
                .v_dim = 512,
                .page_size = random.pick(std::vector{16, 64}),
                .dtype =
                    random.pick(std::vector{Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat8E4M3}),
                .page_kind = PageKind::kLatent,
                .scales = random_scales(random, random.pick(kScaleKinds), 1, PageKind::kLatent)},
      .steps = 5,
      .max_sequences = 3,
      .max_append = 100,
      .max_queries = 2};
  config.cache.pages_per_rank = pages_for(600, config.cache.page_size, mesh.kv_parallel());
  config.cache.home_threshold_tokens = random.integer(0, 64);
  return config;
}

int heads_of(const LayerGroup& group, const CacheOptions& cache) {
  return group.kv_heads == 0 ? cache.kv_heads : group.kv_heads;
}

/// The last layer, with heads of its own and pages of its own kind and dims.
LayerGroup random_group(Random& random, const CacheOptions& cache) {
  const std::vector<int> dims{1, 8, 20, 64, 96};
  LayerGroup group{.layers = {cache.layers - 1},
                   .kv_heads = random.coin() ? cache.q_heads : 0,
                   .k_dim = random.pick(dims),
                   .dtype = random.pick(kDtypes),
                   .page_kind = random.coin() ? PageKind::kKv : PageKind::kLatent,
                   .window = random.coin() ? random.integer(1, 30) : 0,
                   .page_share = random.coin() ? 1.0 : 3.0};
  if (random.coin()) {
    group.q_heads = heads_of(group, cache) * random.pick(std::vector{1, 2, 3, 5});
  }
  if (random.coin()) {
    const int v_dim = random.pick(dims);
    group.v_dim = *group.page_kind == PageKind::kLatent ? std::min(v_dim, group.k_dim) : v_dim;
  }
  if (cache.scales.kind == ScaleKind::kPerHead || random.coin()) {  // those are of its heads alone
    group.scales =
        random_scales(random, random.pick(kScaleKinds), heads_of(group, cache), *group.page_kind);
  }
  return group;
}

/// The kinds of pages, of all layers and of those in a group.
void draw_pages(Random& random, CacheOptions& cache) {
  cache.dtype = random.pick(kDtypes);
  if (random.one_in(4)) {
    cache.page_kind = PageKind::kLatent;
    cache.v_dim = std::min(cache.v_dim, cache.k_dim);
  }
  cache.scales = random_scales(random, random.pick(kScaleKinds), cache.kv_heads, cache.page_kind);
  if (cache.layers > 1 && random.coin()) {
    cache.groups = {random_group(random, cache)};
    if (random.one_in(4)) cache.groups[0].state_bytes = 16 * random.integer(1, 40);
  }
}

/// ", pages move ..."; empty: they do not.
std::string describe_moves(Moves moves) {
  if (moves == Moves::kNone) return "";
  return moves == Moves::kBetween ? ", pages move between steps" : ", pages move beside steps";
}

/// ", two layer groups ..." or the like; empty: all layers are alike.
std::string describe_groups(const CacheOptions& cache) {
  if (cache.groups.empty()) return "";
  const LayerGroup& group = cache.groups[0];
  if (group.state_bytes > 0) return ", a layer with states";
  return fmt::format(", two layer groups (the other one {}/{} heads, dims {}/{}, {} {})",
                     group.q_heads ? group.q_heads : cache.q_heads, heads_of(group, cache),
                     group.k_dim, group.v_dim ? group.v_dim : group.k_dim, name(*group.page_kind),
                     name(*group.dtype));
}

}  // namespace

CaseConfig random_config(Random& random, const Mesh& mesh) {
  // The one kv head of such a model has no share for each of several head ranks.
  const bool is_mla = mesh.head_parallel() == 1 && random.one_in(12);
  CaseConfig config = is_mla              ? mla_config(random, mesh)
                      : random.one_in(12) ? long_config(random, mesh)
                                          : short_config(random, mesh);
  config.cache.placement = random.pick(kPlacements);
  if (random.one_in(4)) config.cache.window = random.integer(1, 60);
  if (!is_mla) draw_pages(random, config.cache);
  if (random.one_in(3)) config.engine = random_form(random, config.cache.page_size);
  if (mesh.kv_parallel() == 1 || random.coin()) return config;
  config.moves = random.one_in(3) ? Moves::kBetween : Moves::kBeside;
  if (random.coin()) config.cache.placement = Placement::kPacked;  // the one with most to level
  return config;
}

bool has_equal_q_heads(const CacheOptions& cache) {
  return std::ranges::all_of(cache.groups, [&](const LayerGroup& group) {
    return group.state_bytes > 0 || group.q_heads == 0 || group.q_heads == cache.q_heads;
  });
}

int most_q_heads(const CacheOptions& cache) {
  return std::max(cache.q_heads, cache.groups.empty() ? 0 : cache.groups[0].q_heads);
}

int most_heads_of_a_kv_head(const CacheOptions& cache) {
  int most = cache.q_heads / cache.kv_heads;
  for (const LayerGroup& group : cache.groups) {
    const int q_heads = group.q_heads ? group.q_heads : cache.q_heads;
    most = std::max(most, q_heads / heads_of(group, cache));
  }
  return most;
}

void make_reproducible(CaseConfig& config, Device device) {
  CacheOptions& cache = config.cache;
  cache.reproducible = true;
  if (device.kind == DeviceKind::kCpu) return;
  const auto half = [](Dtype dtype) {
    return info_of(dtype).bits == 16  ? dtype
           : dtype == Dtype::kFloat32 ? Dtype::kBFloat16
                                      : Dtype::kFloat16;
  };
  const auto whole_units = [](int dim) { return (dim + 7) / 8 * 8; };
  cache.dtype = half(cache.dtype);
  cache.k_dim = whole_units(cache.k_dim);
  cache.v_dim = std::min(whole_units(cache.v_dim ? cache.v_dim : cache.k_dim), 512);
  for (LayerGroup& group : cache.groups) {
    group.dtype = half(group.dtype.value_or(cache.dtype));
    group.k_dim = whole_units(group.k_dim);
    group.v_dim = whole_units(group.v_dim);
  }
}

void give_scales(CaseConfig& config, ScaleKind kind, Random& random) {
  CacheOptions& cache = config.cache;
  cache.dtype = Dtype::kFloat8E4M3;
  cache.scales = random_scales(random, kind, cache.kv_heads, cache.page_kind);
  for (LayerGroup& group : cache.groups) {
    group.dtype = cache.dtype;
    group.scales = random_scales(random, kind, heads_of(group, cache), *group.page_kind);
  }
}

std::string describe(const CaseConfig& config, const Mesh& mesh) {
  const CacheOptions& cache = config.cache;
  return fmt::format(
      "{} ranks (kv {} x head {}), {} layers, {}/{} heads, dims {}/{}, {} pages of {} tokens per "
      "rank, {} {}{}, {} placement{}, windows of {} and {}{}{}",
      mesh.size(), mesh.kv_parallel(), mesh.head_parallel(), cache.layers, cache.q_heads,
      cache.kv_heads, cache.k_dim, cache.v_dim ? cache.v_dim : cache.k_dim, cache.pages_per_rank,
      cache.page_size, name(cache.page_kind), name(cache.dtype),
      info_of(cache.dtype).has_scales ? fmt::format(" scaled {}", name(cache.scales.kind)) : "",
      name(cache.placement), describe_groups(cache), cache.window,
      cache.groups.empty() ? cache.window : cache.groups[0].window,
      config.engine ? ", an engine's pages " + describe(*config.engine) : "",
      describe_moves(config.moves));
}

}  // namespace kvmesh::verify
