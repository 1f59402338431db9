// Measures a group's ways.
#pragma once

#include "comm/combine/choice/way_table.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

/// Whether some rows may go by several ways or strategies, so that a table is of use. The same on
/// all ranks. Sends nothing.
bool has_choice_of_ways(DeviceGroup& group);

/// Times each way between which there is a choice, for three sizes of partials of dim 128, of which
/// every rank has every row: combines one after another on a stream, without a graph. The time is
/// the slowest rank's median of some turns. A way and size takes about 10 ms, or some combines if
/// those are longer; the first over NCCL also connects the ranks. On GPUs it also times copies of
/// 128 MiB, which take some milliseconds; the rate stays 0 where a GPU has no room.
/// @throws Timeout, PeerLost, NcclError; Error if a device failed.
/// Collective.
WayTable measure_ways(DeviceGroup& group);

}  // namespace kvmesh
