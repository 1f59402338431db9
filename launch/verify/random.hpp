// Random numbers that are the same on every rank and every platform, from a seed.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace kvmesh::verify {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  /// Uniform in [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    // Plain modulo: the same numbers on every platform, the bias does not matter here.
    return low + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool coin() { return integer(0, 1) == 1; }
  /// True once in `n` times.
  bool one_in(std::int64_t n) { return integer(1, n) == 1; }
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

}  // namespace kvmesh::verify
