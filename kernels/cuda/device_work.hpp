// The work of one attend as the device takes it: which thread block computes which ranges of
// visits.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attend_work.hpp"
#include "kernels/cuda/attend_params.hpp"

namespace kvmesh::cuda {

/// What one launch can do at a time.
struct LaunchShape {
  int slots = 1;       ///< thread blocks that run at once on the device
  int tile_keys = 64;  ///< keys that a thread block takes at a time
};

/// Tasks of one launch; thread block b has [task_begin[b], task_begin[b + 1]).
struct LaunchWork {
  std::vector<DeviceTask> tasks;
  std::vector<std::int32_t> task_begin{0};
  int blocks() const { return static_cast<int>(task_begin.size()) - 1; }
};

struct DeviceWork {
  std::vector<DeviceVisit> visits;
  std::vector<std::uint8_t> head_classes;
  LaunchWork short_rows;  ///< the blocks of at most `short_rows` rows
  LaunchWork long_rows;
  std::vector<DeviceMerge> merges;
  std::int64_t workspace_rows = 0;
};

/// Cuts blocks of visits into tasks, so that all thread blocks have as much to do. `work` must not
/// be split (WorkLimits::keys_per_split past every length). Where whole blocks fill the device
/// evenly, none is split and the longest come first; else each thread block gets an equal share of
/// all tiles, one after another, whoever they belong to. Depends on its arguments alone.
/// @throws InvalidArgument if a count does not fit 32 bits.
DeviceWork make_device_work(const AttentionShape& shape, const std::vector<std::int64_t>& kv_lens,
                            const AttendWork& work, int short_rows, const LaunchShape& short_launch,
                            const LaunchShape& long_launch);

}  // namespace kvmesh::cuda
