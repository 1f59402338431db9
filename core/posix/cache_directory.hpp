// The folder in which kvmesh keeps files from run to run.
#pragma once

#include <filesystem>

namespace kvmesh {

/// $KVMESH_CACHE_DIR, else $XDG_CACHE_HOME/kvmesh, else $HOME/.cache/kvmesh; empty without any. The
/// code in it is run, so only users who may run code as this user may be able to write to it.
std::filesystem::path default_cache_directory();

}  // namespace kvmesh
