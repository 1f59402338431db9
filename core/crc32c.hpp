// CRC-32C (Castagnoli), the checksum of files and streams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvmesh {

/// Returns the checksum of the bytes; of several pieces, if each call gets the result of the one
/// before. The value for "123456789" is 0xE3069283. Uses the processor's instruction where there is
/// one.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0);

/// The same without the instruction.
std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t before = 0);

}  // namespace kvmesh
