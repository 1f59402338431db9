// Do the ranks plan the same step?
#pragma once

#include <span>

#include "kvmesh/kv_cache.hpp"

namespace kvmesh {

/// Compares the batch and the options of all ranks, of mods the traced graphs and the captured
/// buffers with their numbers. Collective over `world`.
/// @throws InvalidArgument, on every rank, naming a rank and a field that differ.
void check_plans_agree(Communicator& world, std::span<const BatchEntry> batch,
                       const PlanOptions& options);

}  // namespace kvmesh
