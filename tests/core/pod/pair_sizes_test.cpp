#include "core/pod/pair_sizes.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

constexpr std::uint32_t kSign = 0x8000, kSizes = 0x8000;

/// Each element, with another one in the other half, which it must not change.
template <std::uint32_t Infinity>
void expect_order() {
  using Sizes = PairSizes<Infinity>;
  for (std::uint32_t other : {0u, 0x7FFFu, 0xFFFFu, Infinity, 1u}) {
    for (std::uint32_t element = 0; element < 2 * kSizes; ++element) {
      const std::uint32_t sizes = Sizes::of(other << 16 | element);
      const auto low = static_cast<std::int16_t>(sizes);
      const std::uint32_t size = element & ~kSign;
      ASSERT_EQ(low < 0, size >= Infinity) << element;
      if (low < 0) continue;
      ASSERT_EQ(low - static_cast<std::int16_t>(Sizes::kOfZeros), static_cast<int>(size));
      ASSERT_EQ(sizes >> 16, Sizes::of(element << 16 | other) & 0xFFFFu) << "the halves differ";
    }
  }
}

TEST(PairSizes, HaveTheOrderOfFiniteSizes) {
  expect_order<0x7C00>();
  expect_order<0x7F80>();
}

TEST(PairSizes, LargerIsTheElementOfEitherHalf) {
  using Sizes = PairSizes<0x7C00>;
  EXPECT_EQ(Sizes::larger(Sizes::of(0x3C00'BC01)), 0x3C01u);  // 1 and -1.001
  EXPECT_EQ(Sizes::larger(Sizes::of(0xFBFF'0000)), 0x7BFFu);  // the largest, and 0
  EXPECT_EQ(Sizes::larger(Sizes::kOfZeros), 0u);
}

}  // namespace
}  // namespace kvmesh
