#include "tests/support/mpi_tests.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>

#include "kvmesh/communicator.hpp"
#include "tests/support/skipped.hpp"

namespace kvmesh::test {
namespace {

/// Rank 0 prints the usual report, the others print their failures. A rank that fails ends the job
/// at the end of its test: otherwise the others would wait for it, and each of their errors would
/// repeat its own.
class RankReporter : public testing::EmptyTestEventListener {
 public:
  explicit RankReporter(int rank) : rank_(rank) {}

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed() || rank_ == 0) return;
    std::printf("rank %d: %s:%d: %s\n", rank_, result.file_name(), result.line_number(),
                result.message());
  }

  void OnTestEnd(const testing::TestInfo& test) override {
    if (!test.result()->Failed()) return;
    std::printf("rank %d failed %s.%s\n", rank_, test.test_suite_name(), test.name());
    std::fflush(nullptr);
    std::_Exit(1);  // the launcher ends the others
  }

 private:
  int rank_;
};

}  // namespace

int run_mpi_tests(int argc, char** argv) {
  MpiSession session(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  const auto comm = make_mpi_communicator();
  const int rank = comm->rank().value;
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (rank != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new RankReporter(rank));  // owned by GoogleTest

  const bool failed = RUN_ALL_TESTS() != 0;
  std::array results{failed ? 1.0 : 0.0, only_skipped() ? 0.0 : 1.0};
  all_reduce_max(*comm, results, "collect the test results");
  if (results[0] > 0) return 1;
  return results[1] > 0 ? 0 : skip_under_mpirun("every test, on every rank");
}

}  // namespace kvmesh::test
