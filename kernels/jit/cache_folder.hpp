// The size limit of the cubin cache, and which of its files go first.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvmesh::jit {

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
