#include "comm/combine/staged/host_copy.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace kvmesh {
namespace {

constexpr std::int64_t kTokens = 3, kHeads = 2, kDim = 4;

struct Layout {
  const char* name;
  std::int64_t token_stride, head_stride;
  std::size_t rectangles;
};

const Layout kLayouts[] = {
    {"contiguous", kHeads* kDim, kDim, 1},
    {"gaps between tokens", kHeads* kDim + 3, kDim, 1},
    {"gaps between heads", kHeads*(kDim + 1), kDim + 1, kHeads},  // fewer heads than tokens
    {"heads first", kDim, kTokens* kDim, kHeads},
    {"one head for all", kDim, 0, kHeads},
    {"one token for all", 0, kDim, kTokens},
    {"one row for all", 0, 0, kTokens* kHeads},
    {"heads backwards", kHeads* kDim, -kDim, kHeads},
    {"all backwards", -kHeads* kDim, -kDim, kTokens* kHeads},
};

TEST(HostCopy, CopiesRowsOfAnyStrides) {
  for (const Layout& layout : kLayouts) {
    SCOPED_TRACE(layout.name);
    std::vector<float> memory(200);
    std::iota(memory.begin(), memory.end(), 0.0f);
    const TensorView device(memory.data() + 100, Dtype::kFloat32, {kTokens, kHeads, kDim},
                            {layout.token_stride, layout.head_stride, 1});
    HostCopy copy;
    const TensorView host = copy.of(device);
    const std::vector<Rows> copies = rectangles(host, device);
    EXPECT_EQ(copies.size(), layout.rectangles);
    const bool has_no_gaps = &layout == &kLayouts[0];
    EXPECT_EQ(copies[0].width == kTokens * kHeads * kDim * sizeof(float), has_no_gaps);
    copy.download();
    const auto* values = static_cast<const float*>(host.data);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t h = 0; h < kHeads; ++h) {
        for (std::int64_t d = 0; d < kDim; ++d) {
          const auto at = 100 + t * layout.token_stride + h * layout.head_stride + d;
          ASSERT_EQ(values[(t * kHeads + h) * kDim + d], static_cast<float>(at));
        }
      }
    }
    const std::vector<float> before = memory;
    std::fill_n(memory.begin() + 100, 1, -1.0f);  // comes back, and nothing else changes
    copy.upload();
    EXPECT_EQ(memory, before);
  }
}

TEST(HostCopy, ServesLsesAndTensorsOfOtherSizes) {
  std::vector<float> memory(40);
  std::iota(memory.begin(), memory.end(), 0.0f);
  HostCopy copy;
  static_cast<void>(copy.of(TensorView(memory.data(), Dtype::kFloat32, {4, 10})));
  const TensorView lse(memory.data(), Dtype::kFloat32, {5, 3}, {7, 2});
  const TensorView host = copy.of(lse);
  copy.download();
  for (std::int64_t t = 0; t < 5; ++t) {
    for (std::int64_t h = 0; h < 3; ++h) {
      EXPECT_EQ(static_cast<const float*>(host.data)[t * 3 + h], static_cast<float>(t * 7 + h * 2));
    }
  }
  const TensorView none(nullptr, Dtype::kFloat32, {0, 3});
  EXPECT_TRUE(rectangles(copy.of(none), none).empty());
}

}  // namespace
}  // namespace kvmesh
