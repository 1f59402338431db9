// The strides of pools that the attention kernels can address.
#include "kernels/cuda/attend/device_pool.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "kvmesh/error.hpp"

namespace kvmesh::cuda {
namespace {

constexpr std::int64_t kFourGiB = std::int64_t{1} << 32;

/// [4 pages, 2 heads, 8 tokens, 16] of bfloat16.
ConstTensorView pool(std::int64_t page_stride, std::int64_t token_stride) {
  ConstTensorView view(nullptr, Dtype::kBFloat16, {4, 2, 8, 16}, Device{DeviceKind::kCuda, 0});
  view.strides = {page_stride, 16, token_stride, 1};
  return view;
}

TEST(DevicePool, HasStridesInBytes) {
  const DevicePool wide = device_pool(pool(kFourGiB / 2 - 1, 32));
  EXPECT_EQ(wide.page_stride_bytes, kFourGiB - 2);
  EXPECT_EQ(wide.token_stride_bytes, 64u);
  EXPECT_EQ(wide.head_stride, 16);
}

TEST(DevicePool, TakesStridesUpToFourGiB) {
  EXPECT_NO_THROW(check_device_pool(pool(kFourGiB / 2 - 1, 32)));
  EXPECT_THROW(check_device_pool(pool(kFourGiB / 2, 32)), InvalidArgument);
}

// A key is found inside its page by a product of 32 bits.
TEST(DevicePool, TakesPagesWhoseKeysReachUpToFourGiB) {
  EXPECT_NO_THROW(check_device_pool(pool(256, kFourGiB / 16 - 1)));
  EXPECT_THROW(check_device_pool(pool(256, kFourGiB / 16)), InvalidArgument);
}

TEST(DevicePool, RejectsStridesThatOverflowAsBytes) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 2;
  EXPECT_THROW(check_device_pool(pool(256, kMost)), InvalidArgument);
  EXPECT_THROW(check_device_pool(pool(-256, 32)), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::cuda
