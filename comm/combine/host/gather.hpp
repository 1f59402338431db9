// Scatter::kAll in two steps: each owner merges its rows, and then all ranks get all rows.
#pragma once

#include <string_view>

#include "comm/combine/host/host_plan.hpp"
#include "comm/combine/host/row_exchange.hpp"

namespace kvmesh {

/// Room for the merged rows of this rank, which gather_rows sends: in `output` if they can go from
/// there, else in `rows`.
CombineOutput room_for_own_rows(RowExchange& rows, const HostPlan& plan,
                                const CombineOutput& output);

/// Sends this rank's merged rows to all and stores the rows of every owner in `output`. Collective.
/// @throws as RowExchange::exchange.
void gather_rows(RowExchange& rows, const HostPlan& plan, const CombineOutput& output,
                 std::string_view operation);

}  // namespace kvmesh
