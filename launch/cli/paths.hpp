// The files and folders that a command line names.
#pragma once

#include <span>
#include <string>

namespace kvmesh::launch {

struct NamedPath {
  std::string name;  ///< of the flag
  std::string path;  ///< empty: the flag was not given
};

/// @throws InvalidArgument if one of the outputs is the same file as another of them or as one of
/// the inputs, by this or another path. Devices and pipes may be the same: they keep nothing that
/// could be overwritten.
void check_outputs(std::span<const NamedPath> outputs, std::span<const NamedPath> inputs);

/// Makes the folder of --tier-folder, if it is not empty, and a file there, which is removed again.
/// A cache would only count what it cannot store.
/// @throws InvalidArgument with the path and the system's reason.
void check_tier_folder(const std::string& folder);

}  // namespace kvmesh::launch
