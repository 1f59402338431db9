// What a test program ends with if it could test nothing here.
#pragma once

#include <gtest/gtest.h>

namespace kvmesh::test {

/// The tests' SKIP_RETURN_CODE, which mpirun hands on.
inline constexpr int kSkipped = 77;

/// After RUN_ALL_TESTS: did tests run, and each of them skip itself?
inline bool only_skipped() {
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  return all.skipped_test_count() > 0 && all.successful_test_count() == 0;
}

}  // namespace kvmesh::test
