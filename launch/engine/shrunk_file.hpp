// What happens when a file is cut short while it is mapped.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace kvmesh::engine {

/// From now on a read of `bytes`, which the file at `path` is mapped to, that finds the file's end
/// before it ends the process: with one line on standard error that names the file, and status 2.
/// Of up to eight mappings at a time; further ones, and all other bad reads, end it with SIGBUS as
/// before.
///
/// A signal handler does this, since nothing else can: a check of the size is past when the read
/// comes, and a copy in memory would cost each rank of a node what they share now.
void watch_for_shrinking(std::span<const std::byte> bytes, const std::string& path);
/// No longer. `bytes` as they were given.
void stop_watching(std::span<const std::byte> bytes);

}  // namespace kvmesh::engine
