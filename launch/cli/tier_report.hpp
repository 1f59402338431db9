// The part of reports that is about tiers.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kvmesh/tiers.hpp"

namespace kvmesh::launch {

/// A line for each tier that there is, and one for faults.
std::string describe_tiers(const TierOptions& options, const TierStatistics& tiers);
nlohmann::ordered_json json_of(const TierStatistics& tiers);

}  // namespace kvmesh::launch
