// One step of the hash that proves two copies of the allocator equal.
#pragma once

#include <cstdint>

namespace kvmesh {

/// Folds `word` into `hash`. For a fixed word it is a bijection of the hash, so copies that differ
/// stay different while the same words follow. Multiplying by an odd constant (2^64 over the golden
/// ratio) carries a difference up, the shift brings it down again: five cycles per page.
constexpr std::uint64_t fold(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x9E37'79B9'7F4A'7C15u;
  return hash ^ hash >> 32;
}

}  // namespace kvmesh
