// Checks that all ranks plan the same step.
#pragma once

#include <span>

#include "kvmesh/kv_cache.hpp"

namespace kvmesh {

/// Compares the batch and the options of all ranks. Mods are compared by their traced graphs and
/// the contents of their captured buffers.
/// @throws InvalidArgument, on every rank, naming a rank and a field that differ.
/// Collective over `world`.
void check_plans_agree(Communicator& world, std::span<const BatchEntry> batch,
                       const PlanOptions& options);

}  // namespace kvmesh
