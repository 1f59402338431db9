#include "core/tensors/copy_rows.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace kvmesh {
namespace {

TEST(CopyRows, CopiesARectangleAndNothingElse) {
  std::vector<unsigned char> from(5 * 7), to(4 * 9, 0xFF);
  std::iota(from.begin(), from.end(), static_cast<unsigned char>(1));
  copy_rows({&to[2], 9, &from[1], 7, 5, 3}, {});
  for (std::size_t i = 0; i < to.size(); ++i) {
    const std::size_t row = i / 9, column = i % 9;
    const bool inside = row < 3 && column >= 2 && column < 7;
    EXPECT_EQ(to[i], inside ? from[row * 7 + column - 1] : 0xFF) << row << ", " << column;
  }
}

TEST(CopyRows, AcceptsEmptyRows) {
  unsigned char one = 1, two = 2;
  copy_rows({&two, 1, &one, 1, 0, 1}, {});
  copy_rows({&two, 1, &one, 1, 1, 0}, {});
  EXPECT_EQ(two, 2);
}

}  // namespace
}  // namespace kvmesh
