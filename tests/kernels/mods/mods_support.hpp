// Helpers for the tests of mods: seeds, random values, random graphs.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "kvmesh/mods.hpp"

namespace kvmesh::test {

/// KVMESH_SEED if it is set, else a new one. Tests print it with SCOPED_TRACE.
inline std::uint64_t seed() {
  if (const char* given = std::getenv("KVMESH_SEED")) return std::strtoull(given, nullptr, 10);
  return std::random_device{}();
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::int32_t integer(std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(engine_);
  }
  float real(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(engine_);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(engine_); }

  /// Returns a random value, often an extreme one.
  std::int32_t wild_integer() {
    using Limits = std::numeric_limits<std::int32_t>;
    const std::vector<std::int32_t> extremes{0, 1, -1, Limits::min(), Limits::max()};
    if (chance(0.3)) return extremes[static_cast<std::size_t>(integer(0, 4))];
    return chance(0.5) ? integer(-20, 20) : integer(Limits::min(), Limits::max());
  }
  float wild_real() {
    using Limits = std::numeric_limits<float>;
    const std::vector<float> extremes{0.0f,
                                      -0.0f,
                                      1.0f,
                                      -1.0f,
                                      Limits::max(),
                                      Limits::lowest(),
                                      Limits::infinity(),
                                      -Limits::infinity(),
                                      Limits::quiet_NaN(),
                                      Limits::denorm_min(),
                                      2147483648.0f,
                                      -2147483648.0f,
                                      2147483520.0f};
    if (chance(0.3)) return extremes[static_cast<std::size_t>(integer(0, 12))];
    return chance(0.5) ? real(-20.0f, 20.0f) : real(-1e10f, 1e10f);
  }

 private:
  std::mt19937_64 engine_;
};

/// Expressions of random operations over the inputs, constants and buffers of a mod.
class RandomExpression {
 public:
  /// `exact`: only operations that every backend rounds alike.
  RandomExpression(Random& random, const ModInputs& in, bool with_score, bool exact)
      : random_(random), in_(in), with_score_(with_score), exact_(exact) {}

  Expr boolean(int depth) {
    if (depth == 0) return random_.chance(0.5) ? Expr(random_.chance(0.5)) : bools_[in_.kv];
    switch (random_.integer(0, 11)) {
      case 0:
        return boolean(depth - 1) && boolean(depth - 1);
      case 1:
        return boolean(depth - 1) || boolean(depth - 1);
      case 2:
        return !boolean(depth - 1);
      case 3:
        return where(boolean(depth - 1), boolean(depth - 1), boolean(depth - 1));
      case 4:
        return integer(depth - 1) == integer(depth - 1);
      case 5:
        return integer(depth - 1) != integer(depth - 1);
      case 6:
        return integer(depth - 1) <= integer(depth - 1);
      case 7:
        return real(depth - 1) == real(depth - 1);
      case 8:
        return real(depth - 1) != real(depth - 1);
      case 9:
        return real(depth - 1) <= real(depth - 1);
      case 10:
        return real(depth - 1) < real(depth - 1);
      default:
        return integer(depth - 1) < integer(depth - 1);
    }
  }

  Expr integer(int depth) {
    if (depth == 0) {
      const std::vector<Expr> leaves{in_.b,
                                     in_.h,
                                     in_.q,
                                     in_.kv,
                                     in_.q,
                                     in_.kv,
                                     Expr(random_.integer(-9, 9)),
                                     Expr(random_.wild_integer())};
      return leaves[static_cast<std::size_t>(random_.integer(0, 7))];
    }
    switch (random_.integer(0, 11)) {
      case 0:
        return integer(depth - 1) + integer(depth - 1);
      case 1:
        return integer(depth - 1) - integer(depth - 1);
      case 2:
        return integer(depth - 1) * integer(depth - 1);
      case 3:
        return integer(depth - 1) / integer(depth - 1);
      case 4:
        return integer(depth - 1) % integer(depth - 1);
      case 5:
        return min(integer(depth - 1), integer(depth - 1));
      case 6:
        return max(integer(depth - 1), integer(depth - 1));
      case 7:
        return abs(integer(depth - 1));
      case 8:
        return -integer(depth - 1);
      case 9:
        return to_int(real(depth - 1));
      case 10:
        return where(boolean(depth - 1), integer(depth - 1), integer(depth - 1));
      default:
        return ints_[integer(depth - 1)];
    }
  }

  Expr real(int depth) {
    if (depth == 0) {
      if (with_score_ && random_.chance(0.5)) return in_.score;
      return random_.chance(0.5) ? Expr(random_.wild_real()) : Expr(random_.real(-3.0f, 3.0f));
    }
    switch (random_.integer(0, exact_ ? 10 : 13)) {
      case 0:
        return real(depth - 1) + real(depth - 1);
      case 1:
        return real(depth - 1) - real(depth - 1);
      case 2:
        return real(depth - 1) * real(depth - 1);
      case 3:
        return real(depth - 1) / real(depth - 1);
      case 4:
        return min(real(depth - 1), real(depth - 1));
      case 5:
        return max(real(depth - 1), real(depth - 1));
      case 6:
        return abs(real(depth - 1));
      case 7:
        return sqrt(real(depth - 1));
      case 8:
        return to_float(integer(depth - 1));
      case 9:
        return where(boolean(depth - 1), real(depth - 1), -real(depth - 1));
      case 10:
        return floats_[integer(depth - 1)];
      case 11:
        return exp(real(depth - 1));
      case 12:
        return log(real(depth - 1));
      default:
        return tanh(real(depth - 1));
    }
  }

 private:
  template <class T, class Make>
  static std::vector<T> values(int count, Make make) {
    std::vector<T> made;
    for (int i = 0; i < count; ++i) made.push_back(make());
    return made;
  }

  Random& random_;
  ModInputs in_;
  bool with_score_, exact_;
  Buffer<bool> bools_{values<bool>(40, [this] { return random_.chance(0.7); })};
  Buffer<std::int32_t> ints_{values<std::int32_t>(40, [this] { return random_.integer(0, 3); })};
  Buffer<float> floats_{values<float>(40, [this] {
    return random_.chance(0.05) ? random_.wild_real() : random_.real(-2.0f, 2.0f);
  })};
};

/// A mask of a random expression.
inline MaskMod random_mask(Random& random, bool exact) {
  return [&](const Expr& b, const Expr& h, const Expr& q, const Expr& kv) {
    RandomExpression make(random, {Expr(0.0f), b, h, q, kv}, false, exact);
    return make.boolean(random.integer(1, 4));
  };
}

inline ScoreMod random_score(Random& random) {
  return [&](const Expr& score, const Expr& b, const Expr& h, const Expr& q, const Expr& kv) {
    RandomExpression make(random, {score, b, h, q, kv}, true, true);
    return make.real(random.integer(1, 5));
  };
}

}  // namespace kvmesh::test
