// Slurm's compressed lists.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvmesh {

/// Returns the first host of a node list: "node07" of "node[07-09,12],gpu-1".
std::string first_slurm_host(std::string_view nodes);

/// Returns the number of tasks on the node with the number `node`: of "4(x2),3" it is 4, 4 and 3.
/// Returns empty if the text is not such a list or too short.
std::optional<int> slurm_tasks_on_node(std::string_view tasks, int node);

}  // namespace kvmesh
