#include "comm/combine/staged/host_copy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace kvmesh {
namespace {

TEST(HostCopy, ServesLsesAndTensorsOfOtherSizes) {
  std::vector<float> memory(40);
  std::iota(memory.begin(), memory.end(), 0.0f);
  HostCopy copy;
  static_cast<void>(copy.like(TensorView(memory.data(), Dtype::kFloat32, {4, 10})));
  const TensorView lse(memory.data(), Dtype::kFloat32, {5, 3}, {7, 2});
  const TensorView host = copy.download(lse);
  for (std::int64_t t = 0; t < 5; ++t) {
    for (std::int64_t h = 0; h < 3; ++h) {
      EXPECT_EQ(static_cast<const float*>(host.data)[t * 3 + h], static_cast<float>(t * 7 + h * 2));
    }
  }
}

TEST(HostCopy, ComesBackToItsTensor) {
  std::vector<float> memory(3 * 9, 0.0f);
  const TensorView device(memory.data(), Dtype::kFloat32, {3, 2, 4}, {9, 4, 1});
  HostCopy copy;
  const TensorView host = copy.like(device);
  std::fill_n(static_cast<float*>(host.data), host.elements(), 1.0f);
  copy.upload(device);
  for (std::size_t i = 0; i < memory.size(); ++i) EXPECT_EQ(memory[i], i % 9 < 8 ? 1.0f : 0.0f);
}

}  // namespace
}  // namespace kvmesh
