#include "core/tensors/copy_tensor.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace kvmesh {
namespace {

constexpr std::int64_t kTokens = 3, kHeads = 2, kRowDim = 4;
constexpr std::int64_t kFirst = 100;  // elements before the tensor, for strides that go backwards

struct Layout {
  const char* name;
  std::int64_t token_stride, head_stride;
  std::size_t rectangles;

  TensorView in(std::vector<float>& memory) const {
    return {memory.data() + kFirst,
            Dtype::kFloat32,
            {kTokens, kHeads, kRowDim},
            {token_stride, head_stride, 1}};
  }
};

const Layout kLayouts[] = {
    {"contiguous", kHeads* kRowDim, kRowDim, 1},
    {"gaps between tokens", kHeads* kRowDim + 3, kRowDim, 1},
    {"gaps between heads", kHeads*(kRowDim + 1), kRowDim + 1, kHeads},  // fewer heads than tokens
    {"heads first", kRowDim, kTokens* kRowDim, kHeads},
    {"one head for all", kRowDim, 0, kHeads},
    {"one token for all", 0, kRowDim, kTokens},
    {"one row for all", 0, 0, kTokens* kHeads},
    {"heads backwards", kHeads* kRowDim, -kRowDim, kHeads},
    {"all backwards", -kHeads* kRowDim, -kRowDim, kTokens* kHeads},
};

TEST(CopyTensor, CopiesRowsOfAnyStrides) {
  for (const Layout& layout : kLayouts) {
    SCOPED_TRACE(layout.name);
    std::vector<float> memory(200), packed(kTokens * kHeads * kRowDim);
    std::iota(memory.begin(), memory.end(), 0.0f);
    const TensorView spread = layout.in(memory);
    const TensorView dense = tensor(packed.data(), {kTokens, kHeads, kRowDim});
    const std::vector<Rows> copies = rectangles(dense, spread);
    EXPECT_EQ(copies.size(), layout.rectangles);
    const bool has_no_gaps = &layout == &kLayouts[0];
    EXPECT_EQ(copies[0].width == packed.size() * sizeof(float), has_no_gaps);
    copy_tensor(dense, spread, {});
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t h = 0; h < kHeads; ++h) {
        for (std::int64_t d = 0; d < kRowDim; ++d) {
          const auto at = kFirst + t * layout.token_stride + h * layout.head_stride + d;
          ASSERT_EQ(packed[static_cast<std::size_t>((t * kHeads + h) * kRowDim + d)],
                    static_cast<float>(at));
        }
      }
    }
    const std::vector<float> before = memory;
    memory[kFirst] = -1.0f;  // comes back, and nothing else changes
    copy_tensor(spread, dense, {});
    EXPECT_EQ(memory, before);
  }
}

TEST(CopyTensor, HasNoRectanglesWithoutRows) {
  const TensorView none(nullptr, Dtype::kFloat32, {0, 3});
  EXPECT_TRUE(rectangles(none, none).empty());
}

TEST(CopyTensor, RowsAreInOnePieceWithoutGaps) {
  std::vector<float> memory(200);
  for (const Layout& layout : kLayouts) {
    EXPECT_EQ(is_in_one_piece(layout.in(memory)), &layout == &kLayouts[0]) << layout.name;
  }
  const TensorView row(memory.data(), Dtype::kFloat32, {1, 1, kRowDim}, {7, 5, 1});
  EXPECT_TRUE(is_in_one_piece(row));
}

}  // namespace
}  // namespace kvmesh
