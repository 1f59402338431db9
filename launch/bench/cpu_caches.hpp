// The sizes of this machine's caches.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvmesh::bench {

/// Returns the size of the last-level cache that one core reaches, from the kernel's files in
/// `folder`. Without those, the C library's number, which on some machines adds up the caches of
/// all sockets and groups of cores; without that, 32 MiB.
std::int64_t last_level_cache_bytes(
    const std::filesystem::path& folder = "/sys/devices/system/cpu/cpu0/cache");

}  // namespace kvmesh::bench
