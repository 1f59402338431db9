// The folder of the cubin cache: where it is, and how it stays small.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvmesh::jit {

/// $KVMESH_CACHE_DIR, else $XDG_CACHE_HOME/kvmesh, else $HOME/.cache/kvmesh; empty without any. The
/// code in it is run: it must be writable only by who may run code as this user.
std::filesystem::path default_cache_directory();

/// $KVMESH_CACHE_BYTES, else 512 MiB: some thousand attention kernels. @throws InvalidArgument if
/// the variable is no number.
std::uintmax_t default_cache_bytes();

/// Notes that a file of the cache was used just now.
void touch(const std::filesystem::path& file);

/// Removes the cubins that were not used for longest until all take `bytes` or less, and what
/// processes that were killed in the middle have left. Others may do the same at the same time, and
/// read, write and touch: whoever needs a file that is gone compiles it again.
void tidy(const std::filesystem::path& directory, std::uintmax_t bytes);

}  // namespace kvmesh::jit
