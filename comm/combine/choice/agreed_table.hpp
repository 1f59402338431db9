// The table of ways that all ranks of a group use: from this machine's file, or measured.
#pragma once

#include <filesystem>
#include <memory>

#include "comm/combine/choice/way_table.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

/// When ways are chosen by a table: KVMESH_COMBINE_TABLE.
enum class TableUse {
  kOff,   ///< never
  kAuto,  ///< on GPUs, with the table of the file if there is one
  kOn,    ///< the same, and on CPUs
  kNew,   ///< as kOn, but measured again
};

/// @throws InvalidArgument if KVMESH_COMBINE_TABLE is none of off, auto, on, new.
TableUse table_use_of_environment();

/// Returns the table, or null if there is nothing to choose, or `use` or KVMESH_COMBINE_WAY of
/// rank 0 say that none is used. Rank 0 reads and writes the file; the other ranks take what it
/// sends. A file that cannot be read or written, or that is not of this group, does no harm: the
/// ways are measured. `directory`: empty for no file.
/// @throws as `measure_ways`, and InvalidArgument if KVMESH_COMBINE_WAY names no way.
/// Collective. Sends nothing if there is nothing to choose.
std::shared_ptr<const WayTable> agreed_way_table(DeviceGroup& group, TableUse use,
                                                 const std::filesystem::path& directory);

}  // namespace kvmesh
