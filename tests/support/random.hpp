// Random test data from a seed that a failing test prints and takes again.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

namespace kvmesh::test {

/// The seed of this run: KVMESH_SEED if set, else `fallback`.
inline std::uint64_t seed_or(std::uint64_t fallback) {
  const char* text = std::getenv("KVMESH_SEED");
  return text ? std::strtoull(text, nullptr, 10) : fallback;
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  /// Uniform in [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    // Plain modulo: the same numbers on every platform, the bias does not matter here.
    return low + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool coin() { return integer(0, 1) == 1; }
  /// Uniform in [-1, 1).
  float real() { return static_cast<float>(static_cast<double>(engine_() >> 11) * 0x1p-52 - 1.0); }
  std::vector<float> reals(std::int64_t count, float scale = 1.0f) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = scale * real();
    return values;
  }
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<std::size_t>(integer(0, static_cast<std::int64_t>(from.size()) - 1))];
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace kvmesh::test
