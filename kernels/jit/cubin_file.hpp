// One file of the cubin cache: how it is laid out, written so that readers see all of it or
// nothing, and checked when it is read.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/jit/compiler.hpp"

namespace kvmesh::jit {

/// What the names of the cache's files end in: those that are complete, those being written, and
/// those that processes lock.
inline constexpr std::string_view kCubinSuffix = ".cubin";
inline constexpr std::string_view kTemporarySuffix = ".tmp";
inline constexpr std::string_view kLockSuffix = ".lock";

/// The bytes of the file.
std::vector<std::byte> pack(const ProgramKey& key, const Cubin& cubin);

/// What `pack` packed; nothing if a single bit is not as it was, or the key is another one.
std::optional<Cubin> unpack(const ProgramKey& key, std::span<const std::byte> file);

/// The whole file, or nothing if it cannot be read.
std::optional<std::vector<std::byte>> read_file(const std::filesystem::path& path);

/// Writes a new file beside `path` and renames it: whoever opens `path` sees the old file or the
/// whole new one, whatever happens to this process. False, and nothing left behind, if that fails.
bool write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);

}  // namespace kvmesh::jit
