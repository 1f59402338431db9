// The messages of rows between GPUs.
#pragma once

#include <span>
#include <string_view>

#include "comm/combine/nccl/device_combine_plan.hpp"
#include "kvmesh/nccl.hpp"

namespace kvmesh {

/// Sends the plan's messages from `send`, and receives those of the other ranks into `receive`: one
/// group of NCCL's calls on `stream`, which may be captured. Rank i of the plan is members[i] of
/// the group, or i if `members` is empty.
/// @throws Timeout, NcclError, BrokenGroup; Unsupported in a build without NCCL. Collective.
void transfer_rows(NcclGroup::State& group, std::span<const Rank> members,
                   const DeviceCombinePlan& plan, const float* send, float* receive, Stream stream,
                   std::string_view operation);

}  // namespace kvmesh
