// The options of plans, converted from the C interface.
#pragma once

#include <span>

#include "kvmesh/c/kvmesh.h"
#include "kvmesh/kv_cache.hpp"

namespace kvmesh::c {

/// @throws InvalidArgument.
PlanOptions plan_options(const kvmesh_plan_options_t* given);
std::span<const std::int64_t> positions_of(const std::int64_t* positions, std::size_t count);

/// Fills the caller's info from a StepPlan or an ExternalPlan.
template <class Plan>
kvmesh_plan_info_t info_of(const Plan& plan) {
  const IndexRange tokens = plan.tokens_of_output();
  const IndexRange heads = plan.heads_of_output();
  return {.size = 0,
          .query_tokens = plan.query_tokens(),
          .append_tokens = plan.append_tokens(),
          .token_begin = tokens.begin,
          .token_end = tokens.end,
          .head_begin = heads.begin,
          .head_end = heads.end,
          .workspace_bytes = plan.workspace_bytes(),
          .generation = plan.generation()};
}

}  // namespace kvmesh::c
