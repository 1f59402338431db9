#include <gtest/gtest.h>

#include <array>

#include "core/check.hpp"
#include "runtime/c/tensors.hpp"

namespace kvmesh {
namespace {

kvmesh_tensor_t floats(void* data, std::array<std::int64_t, 2>& shape) {
  kvmesh_tensor_t tensor{};
  tensor.data = data;
  tensor.device_type = 1;
  tensor.ndim = 2;
  tensor.type_code = 2;
  tensor.type_bits = 32;
  tensor.type_lanes = 1;
  tensor.shape = shape.data();
  return tensor;
}

TEST(CTensors, OptionalOnesNeedDataIfTheyHaveElements) {
  std::array<std::int64_t, 2> shape{2, 1};
  float data[2] = {};
  const kvmesh_tensor_t given = floats(data, shape), nowhere = floats(nullptr, shape);
  EXPECT_EQ(c::view_or_empty(&given, "lse").data, data);
  EXPECT_THROW(c::view_or_empty(&nowhere, "lse"), InvalidArgument);
  EXPECT_TRUE(c::view_or_empty(nullptr, "lse").empty());
  shape = {0, 1};
  EXPECT_TRUE(c::view_or_empty(&nowhere, "lse").empty());
}

}  // namespace
}  // namespace kvmesh
