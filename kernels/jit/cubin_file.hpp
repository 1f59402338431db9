// One file of the cubin cache: its layout, and the check when it is read.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/jit/compiler.hpp"

namespace kvmesh::jit {

/// Suffixes of the cache's complete files, and of its locks.
inline constexpr std::string_view kCubinSuffix = ".cubin";
inline constexpr std::string_view kLockSuffix = ".lock";

/// Returns the bytes of the file.
std::vector<std::byte> pack(const ProgramKey& key, const Cubin& cubin);

/// Returns the contents that `pack` packed, or nothing if a single bit differs, or the key is
/// another one.
std::optional<Cubin> unpack(const ProgramKey& key, std::span<const std::byte> file);

}  // namespace kvmesh::jit
