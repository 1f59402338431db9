#include <gtest/gtest.h>

#include <bit>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/mods/graph.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/mod_text.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh {
namespace {

std::string refusal(std::string_view text) {
  try {
    parse_mask_mod(text);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "taken";
}

TEST(ModText, ReadsHandWrittenText) {
  const MaskMod window = parse_mask_mod(R"(
      %0 = q : int32
      %1 = kv : int32
      %2 = <= %1 %0 : bool
      %3 = - %0 %1 : int32
      %4 = constant 4 : int32
      %5 = < %3 %4 : bool
      %6 = && %2 %5 : bool
  )");
  const MaskMod expected = mods::sliding_window(4);
  for (int q = 0; q < 10; ++q) {
    for (int kv = 0; kv < 10; ++kv) EXPECT_EQ(window(0, 0, q, kv), expected(0, 0, q, kv));
  }
}

TEST(ModText, PrintsAndReadsTheSameMod) {
  const Buffer<std::int32_t> lengths({3, 5});
  const std::vector<MaskMod> masks{mods::no_mask(), mods::causal(), mods::sliding_window(7),
                                   mods::prefix_lm(9), !mods::causal() || mods::prefix_lm(2)};
  for (const MaskMod& mask : masks) {
    EXPECT_EQ(parse_mask_mod(mask.to_string()).to_string(), mask.to_string());
  }
  const std::vector<ScoreMod> scores{
      ScoreMod(), mods::soft_cap(30.1f), [](auto s, auto b, auto h, auto q, auto kv) {
        return where(b == h, exp(s) / 3.0f, log(abs(s))) + min(q % 5, max(kv, -7)) * sqrt(tanh(-s));
      }};
  for (const ScoreMod& score : scores) {
    EXPECT_EQ(parse_score_mod(score.to_string()).to_string(), score.to_string());
  }
}

TEST(ModText, ReadsBuffersInTheOrderGiven) {
  const std::vector<float> slopes{0.5f, 0.25f};
  const ModBuffer buffer{.owner = nullptr, .data = slopes.data(), .size = 2};
  const ScoreMod alibi = mods::alibi(Buffer<float>(slopes));
  const ScoreMod read = parse_score_mod(alibi.to_string(), {&buffer, 1});
  EXPECT_EQ(read.to_string(), alibi.to_string());
  EXPECT_EQ(read(1.0f, 0, 1, 9, 2), alibi(1.0f, 0, 1, 9, 2));
}

TEST(ModText, KeepsTheBitsOfConstants) {
  test::Random random(test::seed());
  for (int i = 0; i < 200; ++i) {
    const float value = random.wild_real();
    SCOPED_TRACE(value);
    const ScoreMod score([&](auto s, auto, auto, auto, auto) { return s * value; });
    const ScoreMod read = parse_score_mod(score.to_string());
    EXPECT_EQ(std::bit_cast<std::uint32_t>(read(1.0f, 0, 0, 0, 0)),
              std::bit_cast<std::uint32_t>(score(1.0f, 0, 0, 0, 0)));
  }
}

TEST(ModText, ParsedRandomMasksAreEqual) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE(seed);
  test::Random random(seed);
  for (int i = 0; i < 100; ++i) {
    const MaskMod mask = test::random_mask(random, false);
    const MaskMod read = parse_mask_mod(mask.to_string(), mask.graph().buffers);
    for (int point = 0; point < 20; ++point) {
      const int b = random.integer(0, 3), h = random.integer(0, 7);
      const int q = random.integer(0, 99), kv = random.integer(0, 99);
      ASSERT_EQ(read(b, h, q, kv), mask(b, h, q, kv)) << mask.to_string();
    }
  }
}

TEST(ModText, NamesTheInvalidLine) {
  EXPECT_EQ(refusal(""), "a mod's text has no line");
  EXPECT_NE(refusal("%0 = q : int32\n%1 = nonsense %0 : int32").find("line 2"), std::string::npos);
  for (const char* text :
       {"%0 = q", "q", "%1 = q : int32", "%0 = q : bool", "%0 = < %0 %1 : bool",
        "%0 = q : int32\n%1 = < %0 : bool", "%0 = q : int32\n%1 = < %0 %0 %0 : bool",
        "%0 = constant 1.5 : int32", "%0 = constant x : float32", "%0 = constant : bool",
        "%0 = q : int32\n%1 = load buffer0 %0 : int32", "%0 = q : int32\n%1 = load 0 %0 : int32",
        "%0 = q : int32\n%1 = ! %0 : bool", "%0 = q : int32\n%1 = < %-1 % : bool", "%0 = q : int32",
        "%0 = score : float32\n%1 = < %0 %0 : bool"}) {
    EXPECT_NE(refusal(text), "taken") << text;
  }
}

TEST(ModText, RejectsTextWithoutAnEnd) {
  std::ostringstream text;
  text << "%0 = q : int32\n";
  for (int i = 1; i < 3000; ++i) text << '%' << i << " = + %" << i - 1 << " %0 : int32\n";
  EXPECT_NE(refusal(text.str()), "taken");
}

}  // namespace
}  // namespace kvmesh
