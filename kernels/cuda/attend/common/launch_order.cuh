// Orders the launches of one attention, which overlap. None reads what another one writes, so only
// the first waits for the kernels before it, and lets the next start as soon as they have ended:
// the thread blocks of the next take the multiprocessors that become free.
#pragma once

#include "core/cuda/device/dependent_launch.cuh"
#include "kernels/cuda/attend/common/params.hpp"

namespace kvmesh::cuda {

/// Waits until queries, pages and outputs may be used. Every warp that uses them calls it.
__device__ inline void wait_for_inputs(const AttendParams& p) {
  if (p.is_first) griddepcontrol_wait();
}

/// Called by one warp after wait_for_inputs: the next launch finds all inputs there.
__device__ inline void start_next_launch(const AttendParams& p) {
  if (!p.is_last) griddepcontrol_launch_dependents();
}

/// Called by one warp when it has no further work. The kernel after the last launch waits for that
/// launch alone, so each launch waits for the one before.
__device__ inline void end_launch(const AttendParams& p) {
  if (!p.is_first) griddepcontrol_wait();
  griddepcontrol_launch_dependents();
}

}  // namespace kvmesh::cuda
