// Requests for memory of devices that do not exist.
#include "kvmesh/device_memory.hpp"

#include <gtest/gtest.h>

#include "kvmesh/error.hpp"

namespace kvmesh::test {
namespace {

TEST(DeviceMemory, RejectsMissingDevices) {
  const Device none{DeviceKind::kCuda, cuda_device_count()};
  EXPECT_THROW(use_device(none), Unsupported);
  EXPECT_THROW(DeviceMemory(none, 16), Unsupported);
}

}  // namespace
}  // namespace kvmesh::test
