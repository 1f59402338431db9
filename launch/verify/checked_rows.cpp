// CheckedCache: compares rows, with one rank and with float64.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/verify/checked_step.hpp"

namespace kvmesh::verify {
namespace {

// Distance of two numbers that may be the same infinity.
double distance(double a, double b) { return a == b ? 0 : std::abs(a - b); }

// `mask`, of which a query sees the keys in its window.
MaskMod within(std::int64_t window, const MaskMod& mask) {
  if (window == 0) return mask;
  const auto positions = static_cast<std::int32_t>(window);
  return mask && MaskMod([positions](auto, auto, auto q, auto kv) { return q - kv < positions; });
}

// Null: the layer has the plan's own mask, score and scale.
const LayerKind* kind_of(const PlanOptions& plan, int layer) {
  for (const LayerKind& kind : plan.kinds) {
    if (std::ranges::find(kind.layers, layer) != kind.layers.end()) return &kind;
  }
  return nullptr;
}

}  // namespace

PlanOptions options_of_layer(const PlanOptions& plan, int layer, std::int64_t window) {
  PlanOptions options = plan;
  options.kinds.clear();
  if (const LayerKind* kind = kind_of(plan, layer)) {
    options.mask = kind->mask;
    options.score = kind->score;
    options.scale = kind->scale;
  }
  options.mask = within(window, options.mask);
  return options;
}

// How far apart the single rank's outputs are with and without rounded queries.
auto CheckedCache::spread_of_rounding(const LayerResult& result, const Row& row) {
  return [&](HostTensor Outputs::*of, std::int64_t d) {
    return distance((result.single.*of).get(row.token, row.head, d),
                    (result.rounded.*of).get(row.token, row.head, d));
  };
}

void CheckedCache::check_layer(const Step& step, const LayerResult& result) {
  const IndexRange tokens = step.plan.tokens_of_output(),
                   heads = step.plan.heads_of_output(result.layer);
  for (std::int64_t row = 0; row < result.o.rows(); ++row) {
    const std::int64_t t = tokens.begin + row;
    if (t >= std::ssize(step.queries)) break;  // room that the batch does not use
    if (step.options.plan.scatter == Scatter::kOwner &&
        step.plan.participation(result.layer).owner(t) != mesh_->kv_rank()) {
      continue;
    }
    // If every rank has every row, the ranks compare the rows with float64 in turn.
    const bool exact = step.options.plan.scatter != Scatter::kAll ||
                       t % mesh_->kv_parallel() == mesh_->kv_rank().value;
    for (std::int64_t h = 0; h < result.o.heads(); ++h) {
      const std::int64_t head = local(of(result.layer).q_heads).begin + heads.begin + h;
      const Row place{row, h, t, head};
      const auto single_o = [&](std::int64_t d) { return double{result.single.o.get(t, head, d)}; };
      const double single_lse = result.single.lse.get(t, head, 0);
      if (cache_.options().reproducible) {
        compare_bits(step, result, place, single_o, single_lse);
      } else {
        compare_row(step, result, place, "one rank", single_o, single_lse,
                    spread_of_rounding(result, place));
      }
      if (!exact) continue;
      compare_with_reference(step, result, place);
      findings_.add_rows(1);
    }
  }
}

std::string CheckedCache::place_of(const Step& step, const LayerResult& result, const Row& row,
                                   const std::string& what) const {
  const Step::Query& query = step.queries[static_cast<std::size_t>(row.token)];
  return fmt::format("layer {}, query {} of sequence {} at position {}, head {}: {}", result.layer,
                     row.token, describe(step.batch[query.entry].sequence), query.position,
                     row.head, what);
}

template <class WantO>
void CheckedCache::compare_bits(const Step& step, const LayerResult& result, const Row& row,
                                const WantO& want_o, double want_lse) {
  const auto where = [&](const std::string& what) {
    return place_of(step, result, row, what + " by one rank, which must have the same bits");
  };
  const Bound none{.tolerance = 0};
  for (std::int64_t d = 0; d < result.o.dim(); ++d) {
    const float want = rounded_to(step.options.output, static_cast<float>(want_o(d)));
    findings_.compare(result.o.get(row.row, row.column, d), want, none,
                      [&] { return where(fmt::format("o[{}]", d)); });
  }
  if (!step.options.lse) return;
  findings_.compare(result.lse.get(row.row, row.column, 0), want_lse, none,
                    [&] { return where("lse"); });
}

void CheckedCache::compare_with_reference(const Step& step, const LayerResult& result,
                                          const Row& row) {
  const ReferenceRow want = reference(step, result, result.q, row);
  const auto want_o = [&](std::int64_t d) { return want.o[static_cast<std::size_t>(d)]; };
  if (!cache_.options().reproducible) {
    compare_row(step, result, row, "float64", want_o, want.lse, spread_of_rounding(result, row));
    return;
  }
  // The one rank has rounded the queries, too.
  const ReferenceRow rounded =
      &result.rounded_q == &result.q ? want : reference(step, result, result.rounded_q, row);
  compare_row(step, result, row, "float64", want_o, want.lse,
              [&](HostTensor Outputs::*of, std::int64_t d) {
                const auto at = static_cast<std::size_t>(d);
                return of == &Outputs::o ? distance(want.o[at], rounded.o[at])
                                         : distance(want.lse, rounded.lse);
              });
}

template <class WantO, class Spread>
void CheckedCache::compare_row(const Step& step, const LayerResult& result, const Row& row,
                               const char* with, const WantO& want_o, double want_lse,
                               const Spread& spread) {
  const auto where = [&](const std::string& what) {
    return place_of(step, result, row, fmt::format("{} by {}", what, with));
  };
  const Tolerances tolerances = arithmetic_tolerances(mesh_->device(), of(result.layer).dtype);
  for (std::int64_t d = 0; d < result.o.dim(); ++d) {
    findings_.compare(
        result.o.get(row.row, row.column, d), want_o(d),
        {.tolerance = tolerances.o, .spread = spread(&Outputs::o, d), .dtype = step.options.output},
        [&] { return where(fmt::format("o[{}]", d)); });
  }
  if (!step.options.lse) return;
  findings_.compare(result.lse.get(row.row, row.column, 0), want_lse,
                    {.tolerance = tolerances.lse, .spread = spread(&Outputs::lse, 0)},
                    [&] { return where("lse"); });
}

ReferenceRow CheckedCache::reference(const Step& step, const LayerResult& result,
                                     const HostTensor& queries, const Row& place) const {
  const std::int64_t t = place.token, head = place.head;
  const CacheOptions& cache = of(result.layer);
  const Step::Query& at = step.queries[static_cast<std::size_t>(t)];
  std::vector<float> query;
  for (std::int64_t d = 0; d < cache.k_dim; ++d) query.push_back(queries.get(t, head, d));
  PlanOptions given = step.options.plan;
  given.mask = step.visible();
  const PlanOptions of_layer = options_of_layer(given, result.layer, cache.window);
  const float scale = of_layer.scale.value_or(1.0f / std::sqrt(static_cast<float>(cache.k_dim)));
  const TokenLists& lists = step.options.lists;
  const auto visible = [&](auto b, auto h, auto q, std::int32_t kv) {
    return (lists.empty() || lists.has(t, kv)) && of_layer.mask(b, h, q, kv);
  };
  const Layers& layers = content_.at(step.batch[at.entry].sequence);
  const ReferenceRow row = reference_row(
      layers[static_cast<std::size_t>(result.layer)], query.data(), scale, visible, of_layer.score,
      static_cast<std::int32_t>(at.entry), static_cast<std::int32_t>(head),
      cache.q_heads / cache.kv_heads, static_cast<std::int32_t>(at.position));
  return step.options.sinks ? with_sink(row, result.sinks.get(0, 0, head)) : row;
}

}  // namespace kvmesh::verify
