// Random test data from a seed that a failing test prints and takes again.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "launch/verify/random.hpp"

namespace kvmesh::test {

using verify::Random;

/// The seed of this run: KVMESH_SEED if set, else `fallback`.
inline std::uint64_t seed_or(std::uint64_t fallback) {
  const char* text = std::getenv("KVMESH_SEED");
  return text ? std::strtoull(text, nullptr, 10) : fallback;
}

}  // namespace kvmesh::test
