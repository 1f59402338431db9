#include "kvmesh/partial.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Rows {
  std::vector<float> o, lse;
  Partial partial() { return {tensor(o.data(), {2, 1, 2}), tensor(lse.data(), {2, 1})}; }
};

TEST(Partial, MergeEqualsTheUnionOfTheKeys) {
  // Subset a has weight e^1, subset b e^2: the union's output lies between by these weights.
  Rows a{{1, 2, 3, 4}, {1.0f, 0.0f}}, b{{5, 6, 7, 8}, {2.0f, 0.0f}};
  merge_into(a.partial(), b.partial());
  const double wa = std::exp(1.0), wb = std::exp(2.0);
  EXPECT_NEAR(a.o[0], (1 * wa + 5 * wb) / (wa + wb), 1e-6);
  EXPECT_NEAR(a.o[1], (2 * wa + 6 * wb) / (wa + wb), 1e-6);
  EXPECT_NEAR(a.lse[0], std::log(wa + wb), 1e-6);
  EXPECT_NEAR(a.o[2], 5, 1e-6);
  EXPECT_NEAR(a.lse[1], std::log(2.0), 1e-6);
}

TEST(Partial, EmptySubsetChangesNothing) {
  Rows a{{1, 2, kNaN, kNaN}, {0.5f, -kInfinity}};
  Rows b{{kNaN, kNaN, 3, 4}, {-kInfinity, 0.25f}};
  merge_into(a.partial(), b.partial());
  EXPECT_EQ(a.o, (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(a.lse, (std::vector<float>{0.5f, 0.25f}));
}

TEST(Partial, TwoEmptySubsetsAreEmpty) {
  Rows a{{kNaN, kNaN, 0, 0}, {-kInfinity, -kInfinity}};
  Rows b{{kNaN, kNaN, 0, 0}, {-kInfinity, -kInfinity}};
  merge_into(a.partial(), b.partial());
  EXPECT_EQ(a.o, (std::vector<float>{0, 0, 0, 0}));
  EXPECT_EQ(a.lse, (std::vector<float>{-kInfinity, -kInfinity}));
}

TEST(Partial, NanRowIsNotEmpty) {
  for (const float other : {-kInfinity, kNaN, 0.5f}) {
    Rows a{{kNaN, kNaN, 1, 2}, {kNaN, 0.25f}}, b{{0, 0, 0, 0}, {other, -kInfinity}};
    merge_into(a.partial(), b.partial());
    for (const float value : {a.o[0], a.o[1], a.lse[0]}) EXPECT_TRUE(std::isnan(value)) << other;
    EXPECT_EQ(a.lse[1], 0.25f);
  }
}

TEST(Partial, NanWithoutWeightInFloat32Shows) {
  Rows a{{kNaN, 1, 2, 3}, {-200, 0}}, b{{4, 5, kNaN, 7}, {200, -200}};
  merge_into(a.partial(), b.partial());
  EXPECT_TRUE(std::isnan(a.o[0]) && std::isnan(a.o[2]));
  EXPECT_EQ(a.o[1], 5);
  EXPECT_EQ(a.o[3], 3);
}

TEST(Partial, LargeLsesDoNotOverflow) {
  Rows a{{1, 1, 1, 1}, {1e30f, 300.0f}}, b{{3, 3, 3, 3}, {0.0f, 300.0f}};
  merge_into(a.partial(), b.partial());
  EXPECT_EQ(a.o[0], 1.0f);
  EXPECT_NEAR(a.o[2], 2, 1e-4);  // float32 has 300 + log 2 to 3e-5, and its exp no better
  EXPECT_NEAR(a.lse[1], 300 + std::log(2.0), 1e-4);
}

TEST(Partial, ShapesMustAgree) {
  Rows a{{1, 2, 3, 4}, {0, 0}}, b{{1, 2, 3, 4}, {0, 0}};
  const Partial other{tensor(b.o.data(), {1, 2, 2}), tensor(b.lse.data(), {1, 2})};
  EXPECT_THROW(merge_into(a.partial(), other), InvalidArgument);
  EXPECT_EQ(a.o, (std::vector<float>{1, 2, 3, 4}));
}

TEST(Partial, RejectsPartialsOnGpus) {
  Rows a{{1, 2, 3, 4}, {0, 0}}, b{{1, 2, 3, 4}, {0, 0}};
  const auto refuse = [&](const auto& spoil) {
    Partial wrong = b.partial();
    spoil(wrong);
    EXPECT_THROW(merge_into(a.partial(), wrong), InvalidArgument);
    EXPECT_THROW(merge_into(wrong, a.partial()), InvalidArgument);
    EXPECT_THROW(to_natural({wrong.o, wrong.lse}), InvalidArgument);
  };
  refuse([](Partial& p) { p.o.dtype = Dtype::kFloat16; });
  refuse([](Partial& p) { p.lse.dtype = Dtype::kBFloat16; });
  refuse([](Partial& p) { p.o.strides[2] = 2; });
  refuse([](Partial& p) { p.lse.shape[0] = 1; });
  refuse([](Partial& p) { p.o.device = {DeviceKind::kCuda, 0}; });
  EXPECT_EQ(a.o, (std::vector<float>{1, 2, 3, 4}));
}

TEST(Partial, TheBaseIsInTheType) {
  static_assert(!std::is_convertible_v<Base2Partial, Partial>);
  static_assert(!std::is_constructible_v<Partial, Base2Partial>);
  Rows a{{1, 2, 3, 4}, {3.0f, -kInfinity}};
  const Base2Partial base2{a.partial().o, a.partial().lse};
  const Partial natural = to_natural(base2);
  EXPECT_EQ(natural.o.data, a.o.data());
  EXPECT_NEAR(a.lse[0], std::log(8.0), 1e-6);
  EXPECT_EQ(a.lse[1], -kInfinity);
}

}  // namespace
}  // namespace kvmesh
