// CacheOptions::home_threshold_tokens, computed from what a mesh has measured.
#pragma once

#include <cstdint>
#include <optional>

#include "comm/combine/choice/way_table.hpp"
#include "kvmesh/kv_cache.hpp"

namespace kvmesh {

/// Returns the number of tokens of one sequence from which `ranks` ranks, which each read their
/// share and combine one query's rows to heads, take less time than one rank that reads all. Empty
/// if the table lacks the rate or times. `rows`: those of the query. REQUIRES: ranks > 1,
/// token_bytes > 0.
std::optional<std::int64_t> measured_home_threshold(const WayTable& table, const CombineShape& rows,
                                                    double token_bytes, int ranks);

/// Returns the options' number. For kMeasuredHomeThreshold it is computed for a layer of group 0 on
/// world rank 0, whose table counts; the default of CacheOptions if that has not what is needed.
/// REQUIRES: equal options on all ranks. Collective over the world for kMeasuredHomeThreshold; else
/// it sends nothing.
std::int64_t agreed_home_threshold(Mesh& mesh, const CacheOptions& options);

}  // namespace kvmesh
