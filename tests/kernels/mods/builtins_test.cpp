// Each built-in against plain loops, through the evaluator.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "kernels/cpu/mods/mod_evaluator.hpp"
#include "kvmesh/draft_trees.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/mods.hpp"

namespace kvmesh {
namespace {

constexpr int kLength = 40;

void expect_mask(const MaskMod& mod, const std::function<bool(int, int, int, int)>& expected) {
  ModEvaluator evaluator(mod.graph());
  std::vector<std::int32_t> kv(kLength);
  std::iota(kv.begin(), kv.end(), 0);
  std::vector<std::uint8_t> visible(kLength);
  for (int b = 0; b < 2; ++b) {
    for (int h = 0; h < 3; ++h) {
      for (int q = 0; q < kLength; ++q) {
        std::ranges::fill(visible, std::uint8_t{9});
        evaluator.mask(visible.data(), kv.data(), kLength, b, h, q);
        for (int k = 0; k < kLength; ++k) {
          ASSERT_EQ(visible[static_cast<std::size_t>(k)], expected(b, h, q, k) ? 1 : 0)
              << "b " << b << " h " << h << " q " << q << " kv " << k;
        }
      }
    }
  }
}

void expect_score(const ScoreMod& mod,
                  const std::function<double(double, int, int, int, int)>& expected) {
  ModEvaluator evaluator(mod.graph());
  std::vector<std::int32_t> kv(kLength);
  std::iota(kv.begin(), kv.end(), 0);
  for (int h = 0; h < 12; ++h) {
    for (int q = 0; q < kLength; ++q) {
      std::vector<float> scores(kLength);
      for (std::size_t k = 0; k < kLength; ++k) scores[k] = 0.25f * float(k) - 3.0f;
      evaluator.score(scores.data(), kv.data(), kLength, 0, h, q);
      for (int k = 0; k < kLength; ++k) {
        const double exact = expected(0.25 * k - 3.0, 0, h, q, k);
        ASSERT_NEAR(scores[static_cast<std::size_t>(k)], exact, 2e-6 * (1 + std::abs(exact)))
            << "h " << h << " q " << q << " kv " << k;
      }
    }
  }
}

TEST(Builtins, Masks) {
  expect_mask(mods::no_mask(), [](int, int, int, int) { return true; });
  expect_mask(mods::causal(), [](int, int, int q, int kv) { return kv <= q; });
  expect_mask(mods::causal_upper_left(), [](int, int, int q, int kv) { return kv <= q; });
  for (int n : {1, 5, 100}) {
    expect_mask(mods::sliding_window(n),
                [n](int, int, int q, int kv) { return kv <= q && kv > q - n; });
  }
  expect_mask(mods::prefix_lm(7), [](int, int, int q, int kv) { return kv <= q || kv < 7; });
}

TEST(Builtins, MasksWithBuffers) {
  const std::vector<std::int32_t> start{0, 6};
  expect_mask(mods::causal_upper_left(Buffer<std::int32_t>(start)),
              [&](int b, int, int q, int kv) { return q - start[std::size_t(b)] >= kv; });
  const std::vector<std::int32_t> prefix{4, 11};
  expect_mask(mods::prefix_lm(Buffer<std::int32_t>(prefix)),
              [&](int b, int, int q, int kv) { return kv <= q || kv < prefix[std::size_t(b)]; });
  std::vector<std::int32_t> doc;
  for (int i = 0; i < kLength; ++i) doc.push_back(i < 13 ? 0 : i < 30 ? 1 : 2);
  expect_mask(mods::documents(Buffer<std::int32_t>(doc)),
              [&](int, int, int q, int kv) { return doc[std::size_t(q)] == doc[std::size_t(kv)]; });
}

TEST(Builtins, Compositions) {
  const MaskMod causal = mods::causal();
  const MaskMod even([](auto, auto, auto, auto kv) { return kv % 2 == 0; });
  const MaskMod second_head([](auto, auto h, auto, auto) { return h == 1; });
  expect_mask(causal && even, [](int, int, int q, int kv) { return kv <= q && kv % 2 == 0; });
  expect_mask(causal || second_head, [](int, int h, int q, int kv) { return kv <= q || h == 1; });
  expect_mask(!causal, [](int, int, int q, int kv) { return kv > q; });
  expect_mask(mods::mask_and(causal, even, second_head),
              [](int, int h, int q, int kv) { return kv <= q && kv % 2 == 0 && h == 1; });
  expect_mask(mods::mask_or(even, second_head),
              [](int, int h, int, int kv) { return kv % 2 == 0 || h == 1; });
  const MaskMod shifted([&](auto b, auto h, auto q, auto kv) { return causal(b, h, q - 3, kv); });
  expect_mask(shifted, [](int, int, int q, int kv) { return kv <= q - 3; });
}

TEST(Builtins, AlibiSlopes) {
  const Buffer<float> eight = mods::alibi_slopes(8);
  for (int i = 0; i < 8; ++i) EXPECT_FLOAT_EQ(eight[i], float(std::pow(0.5, i + 1)));
  // For 12 heads: the 8 slopes above, then every second one of the 16 slopes 2^(-i/2).
  const Buffer<float> twelve = mods::alibi_slopes(12);
  ASSERT_EQ(twelve.size(), 12);
  for (int i = 0; i < 8; ++i) EXPECT_FLOAT_EQ(twelve[i], eight[i]);
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(twelve[8 + i], float(std::pow(2.0, -0.5 - i)));
}

TEST(Builtins, Scores) {
  expect_score(mods::alibi(8), [](double score, int, int h, int q, int kv) {
    return score + std::pow(0.5, std::min(h, 7) + 1) * (kv - q);
  });
  expect_score(mods::soft_cap(2.5f),
               [](double score, int, int, int, int) { return 2.5 * std::tanh(score / 2.5); });
  std::vector<float> table;
  for (int i = 0; i < 12 * 9; ++i) table.push_back(0.125f * float(i * 7 % 31));
  const auto column = [](int q, int kv) { return std::clamp(q - kv, -4, 4) + 4; };
  expect_score(mods::relative_bias(Buffer<float>(table), 4),
               [&](double score, int, int h, int q, int kv) {
                 return score + table[std::size_t(h * 9 + column(q, kv))];
               });
  const std::vector<float> one_row(table.begin(), table.begin() + 9);
  expect_score(mods::relative_bias(Buffer<float>(one_row), 4),
               [&](double score, int, int, int q, int kv) {
                 return score + table[std::size_t(column(q, kv))];
               });
  expect_score(mods::compose(mods::alibi(8), mods::soft_cap(5.0f)),
               [](double score, int, int h, int q, int kv) {
                 const double biased = score + std::pow(0.5, std::min(h, 7) + 1) * (kv - q);
                 return 5.0 * std::tanh(biased / 5.0);
               });
}

TEST(Builtins, RejectInvalidArguments) {
  EXPECT_THROW(mods::sliding_window(0), InvalidArgument);
  EXPECT_THROW(mods::prefix_lm(-1), InvalidArgument);
  EXPECT_THROW(mods::soft_cap(0.0f), InvalidArgument);
  EXPECT_THROW(mods::soft_cap(NAN), InvalidArgument);
  EXPECT_THROW(mods::alibi(0), InvalidArgument);
  EXPECT_THROW(mods::relative_bias(Buffer<float>(std::vector<float>(10)), 4), InvalidArgument);
  EXPECT_THROW(mods::relative_bias(Buffer<float>(std::vector<float>(9)), -1), InvalidArgument);
}

// Trees drawn at random, several times in the same places; a row without a tree is causal.
TEST(Builtins, DraftTrees) {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<std::int32_t>(random() % unsigned(n)); };
  mods::DraftTrees trees(2, 12);
  const mods::DraftTrees copy = trees;
  expect_mask(copy.mask(), [](int, int, int q, int kv) { return kv <= q; });
  for (int round = 0; round < 20; ++round) {
    const int row = round % 2, count = 1 + below(12), first = kLength - count;
    std::vector<std::int32_t> parents;
    for (int i = 0; i < count; ++i) parents.push_back(below(i + 1) - 1);
    trees.clear(1 - row);
    trees.set(row, first, parents);
    expect_mask(copy.mask(), [&](int b, int, int q, int kv) {
      if (b != row || kv < first) return kv <= q;
      for (int i = q - first; i >= 0; i = parents[static_cast<std::size_t>(i)]) {
        if (i == kv - first) return true;
      }
      return false;
    });
  }
}

TEST(Builtins, RefusesWhatIsNoTree) {
  EXPECT_THROW(mods::DraftTrees(0, 4), InvalidArgument);
  EXPECT_THROW(mods::DraftTrees(4, 0), InvalidArgument);
  EXPECT_THROW(mods::DraftTrees(-1, -1), InvalidArgument);
  EXPECT_THROW(mods::DraftTrees(1 << 20, 1 << 20), InvalidArgument);
  mods::DraftTrees trees(2, 3);
  const std::vector<std::int32_t> chain{-1, 0, 1};
  for (int row : {-1, 2}) {
    EXPECT_THROW(trees.set(row, 5, chain), InvalidArgument);
    EXPECT_THROW(trees.clear(row), InvalidArgument);
  }
  EXPECT_THROW(trees.set(0, -1, chain), InvalidArgument);
  EXPECT_THROW(trees.set(0, std::int64_t{1} << 31, chain), InvalidArgument);
  for (const std::vector<std::int32_t>& bad :
       {std::vector<std::int32_t>{0}, {-2}, {-1, 1}, {-1, 0, 2}, {-1, 0, 1, 2}}) {
    EXPECT_THROW(trees.set(0, 5, bad), InvalidArgument);
  }
}

}  // namespace
}  // namespace kvmesh
