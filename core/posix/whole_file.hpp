// Files that readers see whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace kvmesh {

/// The suffix of files that are being written.
inline constexpr std::string_view kTemporarySuffix = ".tmp";

/// Returns the whole file, or nothing if it cannot be read.
std::optional<std::vector<std::byte>> read_file(const std::filesystem::path& path);

/// Writes a new file beside `path` and renames it: a process that opens `path` sees the old file or
/// the whole new one, even if this process is killed. Returns false, and leaves nothing behind, if
/// that fails.
bool write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);

}  // namespace kvmesh
