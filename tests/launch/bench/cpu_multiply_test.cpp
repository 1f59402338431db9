#include "launch/bench/cpu_multiply.hpp"

#include <gtest/gtest.h>

namespace kvmesh::bench {
namespace {

// Equal sums would be computed once, and the ceiling would be twelve times the work done.
TEST(CpuMultiply, HasTwelveDifferentSums) {
  float sum = 0, after_a_step = 0;
  for (int i = 0; i < 12; ++i) {
    const float start = 1e-3f * static_cast<float>(i);
    sum += start;
    after_a_step += 0.999f * start + 1e-3f;
  }
  EXPECT_NEAR(multiply_from_registers(0), sum, 1e-6f);
  EXPECT_NEAR(multiply_from_registers(1), after_a_step, 1e-6f);
}

}  // namespace
}  // namespace kvmesh::bench
