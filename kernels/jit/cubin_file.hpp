// One file of the cubin cache: its layout, a write that readers see whole or not at all, and the
// check when it is read.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/jit/compiler.hpp"

namespace kvmesh::jit {

/// Suffixes of the cache's files: complete ones, those being written, and locks.
inline constexpr std::string_view kCubinSuffix = ".cubin";
inline constexpr std::string_view kTemporarySuffix = ".tmp";
inline constexpr std::string_view kLockSuffix = ".lock";

/// Returns the bytes of the file.
std::vector<std::byte> pack(const ProgramKey& key, const Cubin& cubin);

/// Returns the contents that `pack` packed, or nothing if a single bit differs, or the key is
/// another one.
std::optional<Cubin> unpack(const ProgramKey& key, std::span<const std::byte> file);

/// Returns the whole file, or nothing if it cannot be read.
std::optional<std::vector<std::byte>> read_file(const std::filesystem::path& path);

/// Writes a new file beside `path` and renames it: a process that opens `path` sees the old file or
/// the whole new one, even if this process is killed. Returns false, and leaves nothing behind, if
/// that fails.
bool write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);

}  // namespace kvmesh::jit
