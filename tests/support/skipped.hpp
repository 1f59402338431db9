// The line by which a test program reports that it could run no test here.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>

namespace kvmesh::test {

/// The tests' SKIP_RETURN_CODE.
inline constexpr int kSkipped = 77;

/// Says so of a rank under mpirun, and returns its exit status: 0, since mpirun waits for seconds
/// after any other; CTest recognises the line (SKIP_REGULAR_EXPRESSION). Every rank must agree,
/// since the line hides the failure of another.
inline int skip_under_mpirun(const char* why) {
  std::printf("skipped under mpirun: %s\n", why);
  return 0;
}

/// After RUN_ALL_TESTS: true if tests ran and each of them skipped itself.
inline bool only_skipped() {
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  return all.skipped_test_count() > 0 && all.successful_test_count() == 0;
}

}  // namespace kvmesh::test
