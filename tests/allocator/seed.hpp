// Seeds of random tests, so that they can be run again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

namespace kvmesh::test {

/// The seed of this run: KVMESH_SEED, or else a new one. Show it with SCOPED_TRACE.
inline std::uint64_t seed() {
  static const std::uint64_t value = [] {
    if (const char* text = std::getenv("KVMESH_SEED")) return std::stoull(text);
    return static_cast<unsigned long long>(std::random_device{}());
  }();
  return value;
}

inline std::string seed_note() { return "run again with KVMESH_SEED=" + std::to_string(seed()); }

/// How many random operations a test makes: `usual`, or its share of KVMESH_OPERATIONS.
inline std::int64_t operations(std::int64_t usual, double share = 1) {
  const char* all = std::getenv("KVMESH_OPERATIONS");
  if (all == nullptr) return usual;
  return std::max<std::int64_t>(200, static_cast<std::int64_t>(std::stod(all) * share));
}

/// Uniform in [first, last].
inline std::int64_t uniform(std::mt19937_64& random, std::int64_t first, std::int64_t last) {
  return std::uniform_int_distribution<std::int64_t>(first, last)(random);
}

}  // namespace kvmesh::test
