// The folder of the cubin cache, and its size limit.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvmesh::jit {

/// $KVMESH_CACHE_DIR, else $XDG_CACHE_HOME/kvmesh, else $HOME/.cache/kvmesh; empty without any. The
/// code in it is run, so only users who may run code as this user may be able to write to it.
std::filesystem::path default_cache_directory();

/// $KVMESH_CACHE_BYTES, else 512 MiB: some thousand attention kernels. @throws InvalidArgument if
/// the variable is not a number.
std::uintmax_t default_cache_bytes();

/// Marks a file of the cache as used now.
void touch(const std::filesystem::path& file);

/// Removes the least recently used cubins until all take `bytes` or less, and the files that killed
/// processes have left. Other processes may do the same at the same time, and read, write and
/// touch: a process that needs a removed file compiles it again.
void tidy(const std::filesystem::path& directory, std::uintmax_t bytes);

}  // namespace kvmesh::jit
