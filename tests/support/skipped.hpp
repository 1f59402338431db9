// The exit status of a test program that could run no test here.
#pragma once

#include <gtest/gtest.h>

namespace kvmesh::test {

/// The tests' SKIP_RETURN_CODE, which mpirun passes on.
inline constexpr int kSkipped = 77;

/// After RUN_ALL_TESTS: true if tests ran and each of them skipped itself.
inline bool only_skipped() {
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  return all.skipped_test_count() > 0 && all.successful_test_count() == 0;
}

}  // namespace kvmesh::test
