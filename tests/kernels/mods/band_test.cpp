// Masks that depend on the distance of query and key alone.
#include "kernels/mods/band.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "kvmesh/mods.hpp"

namespace kvmesh {
namespace {

constexpr std::int64_t kMost = 2147483647;

std::optional<MaskBand> band(const MaskMod& mask) { return band_of(mask.graph()); }

TEST(MaskBand, RecognisesTheUsualMasks) {
  EXPECT_EQ(band(mods::causal()), (MaskBand{0, kMost}));
  EXPECT_EQ(band(mods::sliding_window(64)), (MaskBand{0, 64}));
  EXPECT_EQ(band(mods::no_mask()), (MaskBand{1 - kMost, kMost}));
  EXPECT_EQ(band(!mods::no_mask()), (MaskBand{0, 0}));
  EXPECT_EQ(band(!mods::causal()), (MaskBand{1 - kMost, 0}));
  EXPECT_EQ(band(mods::causal() && mods::sliding_window(9)), (MaskBand{0, 9}));
  EXPECT_EQ(band(MaskMod([](auto, auto, auto q, auto kv) { return q - kv == 7; })),
            (MaskBand{7, 8}));
  EXPECT_EQ(band(MaskMod([](auto, auto, auto q, auto kv) { return kv - q <= 3; })),
            (MaskBand{-3, kMost}));
}

TEST(MaskBand, RecognisesNoOtherMask) {
  const Buffer<std::int32_t> buffer(std::vector<std::int32_t>{3});
  for (const MaskMod& mask :
       {mods::prefix_lm(10), MaskMod([](auto, auto, auto q, auto kv) { return q + kv < 9; }),
        MaskMod([](auto, auto, auto q, auto kv) { return q < kv + 2000000000; }),     // may wrap
        MaskMod([](auto, auto, auto q, auto kv) { return (q + 5) - (kv + 1) < 9; }),  // wraps
        MaskMod([](auto, auto, auto q, auto kv) { return (q - kv) % 2 == 0; }),
        MaskMod([](auto, auto, auto q, auto kv) { return q - kv < 3 || q - kv > 9; }),
        MaskMod([](auto, auto h, auto q, auto kv) { return q - kv < h; }),
        MaskMod([](auto b, auto, auto q, auto kv) { return q - kv < b; }),
        MaskMod([](auto, auto, auto q, auto) { return q < 5; }),
        MaskMod([=](auto, auto, auto q, auto kv) { return q - kv < buffer[q - kv]; })}) {
    EXPECT_EQ(band(mask), std::nullopt) << mask.to_string();
  }
}

}  // namespace
}  // namespace kvmesh
