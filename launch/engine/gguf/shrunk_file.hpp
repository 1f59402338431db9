// Ends the process with a message if a file is cut short while it is mapped.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace kvmesh::engine {

/// Watches `bytes`, to which the file at `path` is mapped. From now on a read of them past the end
/// of the file ends the process with status 2 and one line on standard error that names the file.
/// It watches up to eight mappings; reads of others still end the process by SIGBUS.
///
/// It uses a signal handler, because the file may shrink between a check of its size and the read,
/// and because a copy in memory would need memory for each rank of a node.
void watch_for_shrinking(std::span<const std::byte> bytes, const std::string& path);
/// Stops watching. REQUIRES: `bytes` as passed to the function above.
void stop_watching(std::span<const std::byte> bytes);

}  // namespace kvmesh::engine
