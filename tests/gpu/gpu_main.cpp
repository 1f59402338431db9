// The main of tests that need a GPU: without one they are skipped, which CTest then says.
#include <gtest/gtest.h>

#include <cstdio>

#include "kvmesh/device_memory.hpp"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (kvmesh::cuda_device_count() == 0) {
    std::puts("skipped: no GPU here");
    return 77;  // the test's SKIP_RETURN_CODE
  }
  return RUN_ALL_TESTS();
}
