// The sizes of this machine's caches.
#pragma once

#include <cstdint>
#include <filesystem>

namespace kvmesh::bench {

/// The last-level cache that one core reaches, as the kernel says in `folder`. Where it does not,
/// what the C library says, which on some machines counts the caches of all sockets and groups of
/// cores together; 32 MiB where that says nothing either.
std::int64_t last_level_cache_bytes(
    const std::filesystem::path& folder = "/sys/devices/system/cpu/cpu0/cache");

}  // namespace kvmesh::bench
