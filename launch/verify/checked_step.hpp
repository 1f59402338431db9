// CheckedCache's data about one step, while it runs and is compared.
#pragma once

#include <span>
#include <vector>

#include "launch/verify/checked_cache.hpp"

namespace kvmesh::verify {

/// Its number of queries.
inline std::int64_t queries_of(const BatchEntry& entry) {
  return entry.query_tokens < 0 ? entry.append_tokens : entry.query_tokens;
}

/// Fills the pages that no sequence holds with NaN.
void poison_free_pages(KvCache& cache);

// The plan's options for one layer alone, whose queries see `window` positions (0: all).
PlanOptions options_of_layer(const PlanOptions& plan, int layer, std::int64_t window);

// A step: both plans, and the owner of each query token.
struct CheckedCache::Step {
  struct Query {
    std::size_t entry = 0;
    std::int64_t position = 0;
  };

  Step(std::span<const BatchEntry> entries, const StepOptions& how, StepPlan planned,
       StepPlan planned_single)
      : batch(entries), options(how), plan(std::move(planned)), single(std::move(planned_single)) {}

  const MaskMod& visible() const { return options.visible ? *options.visible : options.plan.mask; }

  std::span<const BatchEntry> batch;
  const StepOptions& options;
  StepPlan plan;
  StepPlan single;
  std::vector<Query> queries;
};

struct CheckedCache::Outputs {
  HostTensor o, lse;
};

// One layer's inputs, of all heads of the model.
struct CheckedCache::Inputs {
  HostTensor q, k, v, sinks;
};

// One layer's queries, their outputs here and on the single rank; and the queries as this device
// may round them, with the single rank's outputs for these, unless the cache is reproducible.
struct CheckedCache::LayerResult {
  int layer;
  const HostTensor& q;
  const HostTensor& rounded_q;
  const HostTensor& sinks;
  const HostTensor& o;
  const HostTensor& lse;
  const Outputs& single;
  const Outputs& rounded;
};

// A row of this rank's output: its place in the output, and its row of the batch and head of the
// model.
struct CheckedCache::Row {
  std::int64_t row, column;
  std::int64_t token, head;
};

}  // namespace kvmesh::verify
