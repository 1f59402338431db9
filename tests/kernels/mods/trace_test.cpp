// Tracing: the graphs of lambdas, and the errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "kernels/mods/graph.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/mods.hpp"

namespace kvmesh {
namespace {

/// The message of the InvalidArgument that `body` throws.
template <class Body>
std::string refusal(Body body) {
  try {
    body();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Trace, LeavesOneNodePerOperation) {
  const Buffer<float> slopes({0.5f, 0.25f});
  const ScoreMod mod([slopes](auto score, auto, auto h, auto q, auto kv) {
    return score + slopes[h] * to_float(kv - q);
  });
  EXPECT_EQ(mod.to_string(),
            "%0 = score : float32\n"
            "%1 = h : int32\n"
            "%2 = load buffer0 %1 : float32\n"
            "%3 = kv : int32\n"
            "%4 = q : int32\n"
            "%5 = - %3 %4 : int32\n"
            "%6 = to_float %5 : float32\n"
            "%7 = * %2 %6 : float32\n"
            "%8 = + %0 %7 : float32\n");
}

TEST(Trace, SharesEqualExpressions) {
  const MaskMod mod(
      [](auto, auto, auto q, auto kv) { return q - kv < 8 && q - kv >= 0 && (q - kv) % 2 == 0; });
  const auto& nodes = mod.graph().nodes;
  const auto is_subtract = [](const ModNode& node) { return node.op == ModOp::kSubtract; };
  EXPECT_EQ(std::ranges::count_if(nodes, is_subtract), 1);
  EXPECT_EQ(std::ranges::count_if(nodes, [](auto& n) { return n.op == ModOp::kQuery; }), 1);
}

TEST(Trace, SharesBuffersAndLoads) {
  const Buffer<std::int32_t> ids({1, 2, 3});
  const MaskMod mod([&](auto, auto, auto q, auto kv) {
    return ids[q] == ids[kv] && ids[q] != 0 && ids[kv] != 0;
  });
  EXPECT_EQ(mod.graph().buffers.size(), 1u);
  const auto is_load = [](const ModNode& node) { return node.op == ModOp::kLoad; };
  EXPECT_EQ(std::ranges::count_if(mod.graph().nodes, is_load), 2);
}

// An engine's own memory may have several views.
TEST(Trace, SeparatesViewsOfOneMemory) {
  static const std::int32_t numbers[] = {1, 2, 3, 4};
  const ModBuffer two{nullptr, numbers, 2, ModType::kInt32};
  const ModBuffer four{nullptr, numbers, 4, ModType::kInt32};
  const MaskMod mod([&](auto, auto, Expr q, Expr kv) { return load(two, q) < load(four, kv); });
  EXPECT_EQ(mod.graph().buffers.size(), 2u);
}

TEST(Trace, FoldsConstantsAndDropsUnusedNodes) {
  const ScoreMod mod([](auto score, auto, auto, auto, auto) {
    const Expr two(2.0f);
    return score * (two * 3.0f + 1);
  });
  EXPECT_EQ(mod.to_string(),
            "%0 = score : float32\n"
            "%1 = constant 7 : float32\n"
            "%2 = * %0 %1 : float32\n");
}

TEST(Trace, TopologicalOrderAndResultLast) {
  const MaskMod mod(
      [](auto b, auto h, auto q, auto kv) { return where(b == 0, q >= kv, kv < 4) || h + b == q; });
  const auto& nodes = mod.graph().nodes;
  std::vector<int> uses(nodes.size());
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    for (std::int32_t input : nodes[i].inputs) {
      ASSERT_LT(input, static_cast<std::int32_t>(i));
      if (input >= 0) ++uses[static_cast<std::size_t>(input)];
    }
  }
  EXPECT_EQ(std::ranges::count(uses, 0), 1);
  EXPECT_EQ(uses.back(), 0);
}

TEST(Trace, ReportsDependencies) {
  EXPECT_FALSE(mods::causal().graph().depends_on(kDependsHead | kDependsBatch | kDependsScore));
  EXPECT_TRUE(mods::causal().graph().depends_on(kDependsQuery));
  EXPECT_TRUE(mods::alibi(4).graph().depends_on(kDependsHead));
  EXPECT_FALSE(mods::soft_cap(30.0f).graph().depends_on(kDependsHead | kDependsQuery));
  EXPECT_TRUE(mods::prefix_lm(Buffer<std::int32_t>({3})).graph().depends_on(kDependsBatch));
}

TEST(Trace, IdentityIsTheDefault) {
  EXPECT_TRUE(ScoreMod().is_identity());
  EXPECT_TRUE(MaskMod().is_identity());
  EXPECT_TRUE(mods::no_mask().is_identity());
  EXPECT_TRUE(ScoreMod([](auto score, auto, auto, auto, auto) { return score; }).is_identity());
  EXPECT_TRUE(MaskMod([](auto, auto, auto, auto) { return true; }).is_identity());
  EXPECT_FALSE(MaskMod([](auto, auto, auto, auto) { return false; }).is_identity());
  EXPECT_FALSE(mods::causal().is_identity());
  EXPECT_EQ(ScoreMod()(1.5f, 0, 0, 0, 0), 1.5f);
  EXPECT_TRUE(MaskMod()(0, 0, 0, 9));
}

TEST(Trace, PromotesAsCppDoes) {
  const Expr kv = symbolic_inputs().kv;
  EXPECT_EQ((kv + 1).type(), ModType::kInt32);
  EXPECT_EQ((kv + 1.0).type(), ModType::kFloat32);
  EXPECT_EQ((2 * kv / 3).type(), ModType::kInt32);
  EXPECT_EQ(((kv < 3) + kv).type(), ModType::kInt32);
  EXPECT_EQ((kv < 2.5f).type(), ModType::kBool);
  EXPECT_EQ(where(kv < 3, kv, 0.0f).type(), ModType::kFloat32);
  EXPECT_EQ(where(kv < 3, kv < 2, kv).type(), ModType::kInt32);
  EXPECT_EQ(sqrt(kv).type(), ModType::kFloat32);
  EXPECT_EQ(abs(kv).type(), ModType::kInt32);
}

TEST(Trace, RejectsWrongTypesByName) {
  EXPECT_EQ(
      refusal([] { ScoreMod([](auto score, auto, auto, auto, auto kv) { return score % kv; }); }),
      "a mod applies % to float32 and int32: it needs integers");
  EXPECT_EQ(refusal([] { MaskMod([](auto, auto, auto q, auto kv) { return (q >= kv) && kv; }); }),
            "a mod applies && to bool and int32: it needs bool and bool");
  EXPECT_EQ(refusal([] { MaskMod([](auto, auto, auto q, auto kv) { return q | kv; }); }),
            "a mod applies || to int32 and int32: it needs bool and bool");
  EXPECT_EQ(refusal([] { MaskMod([](auto, auto, auto q, auto) { return !q; }); }),
            "a mod applies ! to int32: it needs bool");
  EXPECT_EQ(refusal([] { MaskMod([](auto, auto, auto q, auto kv) { return where(q, kv, q); }); }),
            "a mod applies where to a condition of int32: it needs bool");
  EXPECT_EQ(refusal([] { MaskMod([](auto, auto, auto q, auto kv) { return q - kv; }); }),
            "a mask mod returns int32: it must return bool");
  EXPECT_EQ(refusal([] { ScoreMod([](auto, auto, auto, auto q, auto kv) { return q == kv; }); }),
            "a score mod returns bool: it must return float32");
  EXPECT_EQ(refusal([] {
              const Buffer<float> table({1.0f});
              ScoreMod([&](auto score, auto, auto, auto, auto) { return table[score]; });
            }),
            "a mod indexes a buffer with float32: it needs int32 (see to_int)");
  EXPECT_EQ(refusal([] { MaskMod([](auto, auto, auto q, auto) { return q < (1LL << 40); }); }),
            "a mod uses the integer 1099511627776: integers in mods are int32");
  EXPECT_EQ(refusal([] {
              const MaskMod causal = mods::causal();
              ScoreMod([&](auto score, auto b, auto h, auto, auto kv) {
                return where(causal(b, h, score, kv), score, 0.0f);
              });
            }),
            "a mod gets float32 as b, h, q or kv: it needs int32");
}

TEST(Trace, RejectsUnrolledLoops) {
  EXPECT_EQ(refusal([] {
              ScoreMod([](auto score, auto, auto, auto, auto) {
                auto sum = score;
                for (int i = 1; i < 100000; ++i) sum = sum * 1.5f + i;
                return sum;
              });
            }),
            "a mod chains more than 1024 operations: use a buffer, not a loop");
  EXPECT_EQ(refusal([] {
              ScoreMod([](auto score, auto, auto, auto, auto) {
                auto sum = score;
                for (int i = 1; i < 500; ++i) sum = sum + exp(score * i);
                return sum;
              });
            }),
            "a mod has more than 1024 operations");
}

TEST(Buffers, RejectInvalidContents) {
  EXPECT_EQ(refusal([] { Buffer<float>({}); }),
            "a mod's buffer has 0 elements: it needs 1 to 2^31 - 1");
  EXPECT_EQ(refusal([] {
              Buffer<std::int32_t>({1, 2, 3}, 2);
            }),
            "a mod's buffer of 3 elements is not a whole number of rows of 2");
  Buffer<float> buffer({1.0f, 2.0f});
  EXPECT_EQ(refusal([&] { buffer.set(2, 0.0f); }), "element 2 is outside a mod's buffer of 2");
  EXPECT_EQ(refusal([&] { buffer.set({1.0f}); }), "1 values given to a mod's buffer of 2");
  EXPECT_EQ(buffer[1], 2.0f);
}

TEST(Buffers, ClampReadAndAreShared) {
  Buffer<std::int32_t> table({1, 2, 3, 4, 5, 6}, 3);
  const ScoreMod mod([table](auto, auto b, auto, auto, auto kv) { return table.at(b, kv); });
  EXPECT_EQ(table[-5], 1);
  EXPECT_EQ(table[99], 6);
  EXPECT_EQ(table.at(1, 2), 6);
  EXPECT_EQ(mod(0.0f, 1, 0, 0, 1), 5.0f);
  EXPECT_EQ(mod(0.0f, 1, 0, 0, 100), 6.0f);
  EXPECT_EQ(mod(0.0f, -7, 0, 0, 0), 1.0f);
  table.set(4, 50);
  EXPECT_EQ(mod(0.0f, 1, 0, 0, 1), 50.0f);
  table.set({6, 5, 4, 3, 2, 1});
  EXPECT_EQ(mod(0.0f, 1, 0, 0, 1), 2.0f);
}

TEST(Buffers, OutliveTheirCreatorInAMod) {
  MaskMod mod;
  {
    const Buffer<bool> keep({true, false, true});
    mod = [&](auto, auto, auto, auto kv) { return keep[kv]; };
  }
  EXPECT_TRUE(mod(0, 0, 0, 0));
  EXPECT_FALSE(mod(0, 0, 0, 1));
  EXPECT_TRUE(mod(0, 0, 0, 2));
}

TEST(Buffers, WithKnownIndicesChangeToo) {
  Buffer<std::int32_t> table({7, 1, 2, 3}, 2);
  const MaskMod known([table](auto, auto, auto q, auto kv) {
    return q - kv < table[Expr(0)] + table.at(Expr(1), 0);
  });
  const auto body = [table](auto, auto h, auto q, auto kv) {
    return q - kv < table[0 * h] + table.at(0 * h + 1, 0);
  };
  const MaskMod twin(body);
  for (const std::int32_t first : {7, 20}) {
    table.set(0, first);
    for (std::int32_t q = 0; q < 40; ++q) {
      EXPECT_EQ(known(0, 0, q, 0), q < first + 2) << q;
      EXPECT_EQ(twin(0, 1, q, 0), q < first + 2) << q;
      EXPECT_EQ(body(0, 1, q, 0), q < first + 2) << q;
    }
  }
}

// A mod would keep the number, whatever is set later.
TEST(Buffers, AreNotReadWhileAModIsTraced) {
  const Buffer<float> table({7, 8});
  const auto body = [&](auto score, auto, auto, auto, auto) { return score + table[1]; };
  EXPECT_THROW(ScoreMod{body}, InvalidArgument);
  EXPECT_THROW(ScoreMod([&](auto score, auto, auto, auto, auto) { return score + table.at(0, 1); }),
               InvalidArgument);
  EXPECT_EQ(body(1.0f, 0, 0, 0, 0), 9) << "the plain twin reads it";
  EXPECT_EQ(table[1], 8) << "nothing is traced any more";
}

TEST(PlainTwins, AgreeWithTheGraph) {
  const auto body = [](auto score, auto b, auto h, auto q, auto kv) {
    const auto distance = abs(q - kv) % 7 + min(b, h) - max(q, 3) / 2;
    const auto scaled = tanh(score / 2) + sqrt(to_float(kv)) * exp(-to_float(distance) / 8);
    return where(q >= kv && !(h == 1), scaled, log(1.0f + to_float(kv))) + to_int(score);
  };
  const ScoreMod mod(body);
  for (std::int32_t q = 0; q < 20; ++q) {
    for (std::int32_t kv = 0; kv < 20; ++kv) {
      const double exact = body(0.3 * q - 2.0, 1, q % 3, q, kv);
      const float traced = mod(0.3f * float(q) - 2.0f, 1, q % 3, q, kv);
      EXPECT_NEAR(traced, exact, 1e-5 * (1 + std::abs(exact))) << q << " " << kv;
    }
  }
}

TEST(PlainTwins, ConvertToIntEverywhere) {
  EXPECT_EQ(to_int(2.9), 2);
  EXPECT_EQ(to_int(-2.9f), -2);
  EXPECT_EQ(to_int(1e20), std::numeric_limits<std::int32_t>::max());
  EXPECT_EQ(to_int(-1e20f), std::numeric_limits<std::int32_t>::min());
  EXPECT_EQ(to_int(std::nan("")), 0);
  EXPECT_EQ(to_int(true), 1);
}

}  // namespace
}  // namespace kvmesh
