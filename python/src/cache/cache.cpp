// The cache and its steps.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "python/src/bindings.hpp"
#include "python/src/members.hpp"

namespace kvmesh::python {
namespace {

/// Entries are (sequence, append_tokens) or (sequence, append_tokens, query_tokens).
std::vector<BatchEntry> batch_of(nb::handle batch) {
  std::vector<BatchEntry> entries;
  for (nb::handle each : batch) {
    std::vector<std::int64_t> numbers;
    if (!nb::try_cast(each, numbers) || numbers.size() < 2 || numbers.size() > 3) {
      refuse("a batch entry is (sequence, append_tokens[, query_tokens]), of integers", each);
    }
    entries.push_back({SequenceId(static_cast<std::uint64_t>(numbers[0])), numbers[1],
                       numbers.size() == 3 ? numbers[2] : -1});
  }
  return entries;
}

LayerKind kind_of(nb::handle of) {
  Members members(of, "kind of layers");
  LayerKind kind;
  members.read("layers", kind.layers);
  kind.mask = mask_from(members.take("mask"), mods::causal());
  kind.score = score_from(members.take("score"));
  members.read("scale", kind.scale);
  members.done();
  return kind;
}

/// One for all heads, or one for each.
using ScaleArgument = std::variant<float, std::vector<float>>;

KvScales scales_of(std::string_view kind, const ScaleArgument& k, const ScaleArgument& v) {
  KvScales scales{
      .kind = named(kind, {ScaleKind::kPerTensor, ScaleKind::kPerTokenAndHead, ScaleKind::kPerHead},
                    "scale_kind")};
  const auto set = [](const ScaleArgument& given, float& one, std::vector<float>& heads) {
    if (const float* number = std::get_if<float>(&given)) {
      one = *number;
    } else {
      heads = std::get<std::vector<float>>(given);
    }
  };
  set(k, scales.k, scales.k_heads);
  set(v, scales.v, scales.v_heads);
  return scales;
}

/// Returns a layer group's own scales, if it has any.
std::optional<KvScales> scales_in(Members& group) {
  std::string kind;
  std::optional<ScaleArgument> k, v;
  group.read("scale_kind", kind);
  group.read("k_scale", k);
  group.read("v_scale", v);
  if (kind.empty() && !k && !v) return std::nullopt;
  if (kind.empty())
    throw nb::type_error("a layer group with k_scale or v_scale needs a scale_kind");
  return scales_of(kind, k.value_or(1.0f), v.value_or(1.0f));
}

LayerGroup group_of(nb::handle of) {
  Members members(of, "layer group");
  LayerGroup group;
  members.read("layers", group.layers);
  members.read("q_heads", group.q_heads);
  members.read("kv_heads", group.kv_heads);
  members.read("k_dim", group.k_dim);
  members.read("v_dim", group.v_dim);
  members.read("window", group.window);
  members.read("page_share", group.page_share);
  members.read("state_bytes", group.state_bytes);
  std::string dtype, page_kind;
  members.read("dtype", dtype);
  members.read("page_kind", page_kind);
  if (!dtype.empty()) group.dtype = dtype_from(dtype);
  if (!page_kind.empty()) {
    group.page_kind = named(page_kind, {PageKind::kKv, PageKind::kLatent}, "page_kind");
  }
  group.scales = scales_in(members);
  members.done();
  return group;
}

TierOptions tiers_of(nb::handle of) {
  Members members(of, "cache's tiers");
  TierOptions tiers;
  members.read("host_bytes", tiers.host_bytes);
  members.read("directory", tiers.directory);
  members.read("model", tiers.model);
  members.read("file_bytes", tiers.file_bytes);
  members.read("durable", tiers.durable);
  members.read("direct", tiers.direct);
  members.read("stores_per_operation", tiers.stores_per_operation);
  members.done();
  return tiers;
}

std::optional<StepPlan> plan(KvCache& cache, nb::handle batch, nb::handle mask, nb::handle score,
                             std::optional<float> scale, std::string_view scatter,
                             std::string_view strategy, std::optional<std::string_view> way,
                             std::string_view travels_as,
                             const std::vector<std::int64_t>& positions,
                             const BlockMask* block_mask, nb::handle limits, nb::handle kinds,
                             bool shares_prefixes, std::optional<std::int64_t> least_saved_tokens,
                             std::int64_t fixed_split_tokens, bool may_be_full) {
  PlanOptions options;
  options.mask = mask_from(mask, mods::causal());
  options.score = score_from(score);
  options.scale = scale;
  options.scatter = scatter_from(scatter);
  options.strategy = strategy_from(strategy);
  options.way = way_from(way);
  options.travels_as = dtype_from(travels_as);
  options.q_positions = positions;
  options.block_mask = block_mask;
  options.limits = limits_from(limits);
  options.shares_prefixes = shares_prefixes;
  options.least_saved_tokens = least_saved_tokens;
  options.fixed_split_tokens = fixed_split_tokens;
  for (nb::handle kind : kinds) options.kinds.push_back(kind_of(kind));
  const auto entries = batch_of(batch);
  const WithoutPythonsLock others_run;
  if (!may_be_full) return cache.plan(entries, options);
  auto made = cache.try_plan(entries, options);
  if (!made) return std::nullopt;
  return std::move(*made);
}

PlannedStep planned(KvCache& cache, StepPlan plan) {
  const int share = cache.mesh().head_parallel();
  PlannedStep step{std::move(plan), {}};
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    const CacheOptions options = cache.group_options(cache.group_of(layer));
    step.layers.push_back({options.q_heads / share, options.kv_heads / share, options.k_dim,
                           options.v_dim, options.page_kind == PageKind::kLatent});
  }
  return step;
}

void replan(PyCache& self, PyPlan& step, nb::handle batch, nb::handle stream,
            const std::vector<std::int64_t>& positions) {
  const auto entries = batch_of(batch);
  const auto cache = self.use();
  StepPlan& plan = step.get().plan;
  const Stream on = stream_of(stream, cache->mesh().device());
  const WithoutPythonsLock others_run;
  cache->replan(plan, entries, on, positions);
}

CacheOptions cache_options(int layers, int q_heads, int kv_heads, int k_dim, int v_dim,
                           int page_size, std::int64_t pages_per_rank, std::int64_t bytes,
                           double memory_fraction, std::string_view dtype,
                           std::string_view page_kind, KvScales scales, std::string_view placement,
                           std::int64_t home, bool reproducible, PrefixOptions prefix) {
  CacheOptions options;
  options.layers = layers;
  options.q_heads = q_heads;
  options.kv_heads = kv_heads;
  options.k_dim = k_dim;
  options.v_dim = v_dim;
  options.page_size = page_size;
  options.pages_per_rank = pages_per_rank;
  options.bytes = bytes;
  options.memory_fraction = memory_fraction;
  options.dtype = dtype_from(dtype);
  options.page_kind = named(page_kind, {PageKind::kKv, PageKind::kLatent}, "page_kind");
  options.scales = std::move(scales);
  options.placement = placement_from(placement);
  options.home_threshold_tokens = home;
  options.reproducible = reproducible;
  options.prefix = std::move(prefix);
  return options;
}

std::string describe_cache(PyCache& self) {
  if (self.is_closed()) return "<kvmesh.KvCache: closed>";
  KvCache& cache = self.get();
  const CacheOptions& options = cache.options();
  return "<kvmesh.KvCache: " + std::to_string(options.layers) + " layers, " +
         std::to_string(options.kv_heads) + " kv heads, " + std::string(name(options.dtype)) +
         ", " + std::to_string(cache.allocator().sequences()) + " sequences, " +
         std::to_string(cache.allocator().free_pages()) + " of " +
         std::to_string(options.pages_per_rank * cache.mesh().kv_parallel()) + " pages of " +
         std::to_string(options.page_size) + " tokens free on " +
         std::to_string(cache.mesh().kv_parallel()) + " ranks>";
}

void bind_constructor(nb::class_<PyCache>& type) {
  type.def(
      "__init__",
      [](PyCache* self, PyMesh& mesh, int layers, int q_heads, int kv_heads, int k_dim, int v_dim,
         int page_size, std::int64_t pages_per_rank, std::int64_t bytes, double memory_fraction,
         std::int64_t max_pages_per_rank, std::string_view dtype, std::string_view page_kind,
         std::string_view scale_kind, const ScaleArgument& k_scale, const ScaleArgument& v_scale,
         std::string_view placement, std::int64_t home, bool reproducible, bool prefix_cache,
         std::string_view prefix_hash, std::string_view eviction, const std::string& prefix_seed,
         std::int64_t window, nb::list groups, nb::dict tiers) {
        CacheOptions options = cache_options(
            layers, q_heads, kv_heads, k_dim, v_dim, page_size, pages_per_rank, bytes,
            memory_fraction, dtype, page_kind, scales_of(scale_kind, k_scale, v_scale), placement,
            home, reproducible, prefix_options(prefix_cache, prefix_hash, eviction, prefix_seed));
        options.window = window;
        options.max_pages_per_rank = max_pages_per_rank;
        for (nb::handle group : groups) options.groups.push_back(group_of(group));
        options.tiers = tiers_of(tiers);
        const auto of = mesh.use();
        const WithoutPythonsLock others_run;
        new (self) PyCache(KvCache(*of, options), mesh.gate());
      },
      nb::arg("mesh"), nb::kw_only(), nb::arg("layers") = 1, nb::arg("q_heads"),
      nb::arg("kv_heads"), nb::arg("k_dim"), nb::arg("v_dim") = 0, nb::arg("page_size") = 16,
      nb::arg("pages_per_rank") = 0, nb::arg("bytes") = 0, nb::arg("memory_fraction") = 0.0,
      nb::arg("max_pages_per_rank") = 0, nb::arg("dtype") = "bfloat16", nb::arg("page_kind") = "kv",
      nb::arg("scale_kind") = "per token and head", nb::arg("k_scale") = ScaleArgument(1.0f),
      nb::arg("v_scale") = ScaleArgument(1.0f), nb::arg("placement") = "balanced",
      nb::arg("home_threshold_tokens") = 2048, nb::arg("reproducible") = false,
      nb::arg("prefix_cache") = false, nb::arg("prefix_hash") = "sha256_cbor",
      nb::arg("eviction") = "hits", nb::arg("prefix_seed") = "", nb::arg("window") = 0,
      nb::arg("groups") = nb::list(), nb::arg("tiers") = nb::dict(),
      "max_pages_per_rank: how far resize can enlarge the pools. "
      "scale_kind, of float8 pages: 'per token and head', which append computes, or 'per tensor' "
      "or 'per head', with k_scale and v_scale a number each or a list of one for each kv head. "
      "window: positions that a query sees; pages behind it are given up. groups: further groups "
      "of layers, dicts of layers and of what differs: q_heads, kv_heads, k_dim, v_dim, dtype, "
      "page_kind, scale_kind, k_scale, v_scale, window, page_share, state_bytes (a state per "
      "sequence instead of keys). tiers: "
      "where evicted pages go, a dict of host_bytes, directory, model, file_bytes, durable, "
      "direct, stores_per_operation.");
}

/// `Result` is PyPlan, or an optional one for a call that may find too few pages.
template <class Result>
void bind_new_plan(nb::class_<PyCache>& type, const char* name, const char* doc) {
  type.def(
      name,
      [](PyCache& self, nb::object batch, nb::object mask, nb::object score,
         std::optional<float> scale, std::string_view scatter, std::string_view strategy,
         std::optional<std::string_view> way, std::string_view travels_as,
         const std::vector<std::int64_t>& positions, const BlockMask* block_mask, nb::object limits,
         nb::list kinds, bool shares_prefixes, std::optional<std::int64_t> least_saved,
         std::int64_t fixed_split) -> Result {
        constexpr bool kMayBeFull = !std::is_same_v<Result, PyPlan>;
        const auto cache = self.use();
        auto made =
            plan(*cache, batch, mask, score, scale, scatter, strategy, way, travels_as, positions,
                 block_mask, limits, kinds, shares_prefixes, least_saved, fixed_split, kMayBeFull);
        if constexpr (kMayBeFull) {
          if (!made) return std::nullopt;
        }
        return PyPlan(planned(*cache, std::move(*made)), self.gate());
      },
      nb::arg("batch"), nb::kw_only(), nb::arg("mask") = nb::none(), nb::arg("score") = nb::none(),
      nb::arg("scale") = nb::none(), nb::arg("scatter") = "all", nb::arg("strategy") = "auto",
      nb::arg("way") = nb::none(), nb::arg("travels_as") = "float32",
      nb::arg("q_positions") = std::vector<std::int64_t>{}, nb::arg("block_mask") = nb::none(),
      nb::arg("limits") = nb::none(), nb::arg("kinds") = nb::list(),
      nb::arg("shares_prefixes") = true, nb::arg("least_saved_tokens") = nb::none(),
      nb::arg("fixed_split_tokens") = 0, doc);
}

void bind_new_plans(nb::class_<PyCache>& type) {
  bind_new_plan<PyPlan>(
      type, "plan",
      "Plans one step of a batch of (sequence, append_tokens[, query_tokens]). Without a mask "
      "attention is causal. limits: (sequences, query_tokens), or a dict that may also have "
      "pages and shares_prefixes, for captured graphs. "
      "kinds: dicts of layers and their mask, score, scale. shares_prefixes: pages with which "
      "several sequences begin are read once, if that saves least_saved_tokens. "
      "fixed_split_tokens: keys are read in pieces of this many tokens, so that the bits of a "
      "sequence's rows do not depend on the rest of the batch.");
  bind_new_plan<std::optional<PyPlan>>(type, "try_plan",
                                       "As plan, but None where pages are too few.");
}

void bind_replan(nb::class_<PyCache>& type) {
  type.def(
          "pages_needed",
          [](PyCache& self, nb::handle batch) {
            const auto entries = batch_of(batch);
            return self.get().pages_needed(entries);
          },
          nb::arg("batch"),
          "How many pages a plan of the batch would take; compare with free_pages.")
      .def(
          "order_by_owner",
          [](PyCache& self, nb::handle batch, int group) {
            const auto entries = batch_of(batch);
            return self.get().order_by_owner(entries, group);
          },
          nb::arg("batch"), nb::arg("group") = 0,
          "The batch's indices in an order in which sequences whose rows scatter='owner' gives to "
          "one rank follow one another; sequences without pages come last.")
      .def("replan", &replan, nb::arg("step"), nb::arg("batch"), nb::arg("stream") = nb::none(),
           nb::arg("q_positions") = std::vector<std::int64_t>{},
           "Plans another batch in place, with the step's options.");
}

void bind_properties(nb::class_<PyCache>& type) {
  type.def(
          "check_replicas",
          [](PyCache& self) {
            const auto cache = self.use();
            const WithoutPythonsLock others_run;
            cache->check_replicas();
          },
          "Compares the ranks' page tables.")
      .def(
          "free_pages",
          [](PyCache& self, int group) { return self.get().allocator(group).free_pages(); },
          nb::arg("group") = 0)
      .def_prop_ro("pages_per_rank",
                   [](PyCache& self) { return self.peek().options().pages_per_rank; })
      .def_prop_ro("kv_parallel", [](PyCache& self) { return self.peek().mesh().kv_parallel(); })
      .def_prop_ro("pool_bytes", [](PyCache& self) { return self.get().pool_bytes(); })
      .def_prop_ro("digest", [](PyCache& self) { return self.get().digest(); })
      .def("__repr__", &describe_cache);
}

}  // namespace

void bind_cache(nb::module_& module) {
  nb::class_<PyCache> type(module, "KvCache",
                           "This rank's part of the cache. All ranks call the same operations in "
                           "the same order. Heads are the whole model's.");
  make_closable(type);
  bind_constructor(type);
  bind_sequences(type);
  bind_prefix(module, type);
  bind_new_plans(type);
  bind_replan(type);
  bind_properties(type);
}

}  // namespace kvmesh::python
