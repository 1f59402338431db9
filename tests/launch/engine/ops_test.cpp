#include "launch/engine/ops.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/random.hpp"

namespace kvmesh::engine {
namespace {

TEST(Ops, RmsNormMatchesFloat64) {
  test::Random random(30);
  for (std::int64_t size : {1, 15, 16, 33, 576}) {
    const std::vector<float> x = random.reals(size, 5.0f);
    const std::vector<float> weight = random.reals(size);
    std::vector<float> out(x.size(), std::nanf(""));
    rms_norm(x, weight, 1e-5f, out);
    double squares = 0.0;
    for (float value : x) squares += static_cast<double>(value) * static_cast<double>(value);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(size) + 1e-5);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]);
      EXPECT_NEAR(out[i], exact, 1e-6 * std::abs(exact)) << size << " at " << i;
    }
  }
}

TEST(Ops, RmsNormOfZerosIsZero) {
  std::vector<float> x(8, 0.0f);
  rms_norm(x, std::vector<float>(8, 1.0f), 1e-5f, x);
  EXPECT_EQ(x, std::vector<float>(8, 0.0f));
}

TEST(Ops, RopeTurnsPairsByTheirAngles) {
  constexpr std::int64_t kHeadDim = 10;
  constexpr std::int64_t kRopeDims = 8;  // the last two elements stay
  test::Random random(31);
  const std::vector<float> before = random.reals(2 * kHeadDim);
  Rope rope(kRopeDims, 10000.0);
  const std::vector<std::int64_t> positions{3, 70000};
  rope.set_positions(positions);
  for (std::size_t token = 0; token < positions.size(); ++token) {
    std::vector<float> heads = before;
    rope.turn(heads.data(), 2, kHeadDim, token);
    for (std::size_t h = 0; h < 2; ++h) {
      const std::size_t at = h * kHeadDim;
      for (std::size_t i = 0; i < kRopeDims / 2; ++i) {
        const double angle = static_cast<double>(positions[token]) *
                             std::pow(10000.0, -2.0 * static_cast<double>(i) / kRopeDims);
        const double a = before[at + 2 * i];
        const double b = before[at + 2 * i + 1];
        EXPECT_NEAR(heads[at + 2 * i], a * std::cos(angle) - b * std::sin(angle), 1e-6);
        EXPECT_NEAR(heads[at + 2 * i + 1], a * std::sin(angle) + b * std::cos(angle), 1e-6);
      }
      EXPECT_EQ(heads[at + 8], before[at + 8]);
      EXPECT_EQ(heads[at + 9], before[at + 9]);
    }
  }
}

TEST(Ops, RopeFactorsDivideTheFrequencies) {
  Rope rope(4, 100.0, std::vector<float>{2.0f, 4.0f});
  rope.set_positions(std::vector<std::int64_t>{16});
  std::vector<float> heads{1.0f, 0.0f, 1.0f, 0.0f};
  rope.turn(heads.data(), 1, 4, 0);
  EXPECT_NEAR(heads[0], std::cos(16.0 / 2.0), 1e-6);
  EXPECT_NEAR(heads[2], std::cos(16.0 / 4.0 * 0.1), 1e-6);
}

TEST(Ops, AddToAdds) {
  std::vector<float> target{1.0f, 2.0f};
  add_to(target, std::vector<float>{0.5f, -2.0f});
  EXPECT_EQ(target, (std::vector<float>{1.5f, 0.0f}));
}

}  // namespace
}  // namespace kvmesh::engine
