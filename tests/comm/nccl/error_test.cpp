// Errors that NCCL's failures become, as far as a test without a GPU can show.
#include <gtest/gtest.h>

#include "comm/nccl/state.hpp"

namespace kvmesh::test {
namespace {

void expect_contains(const std::exception& error, const std::string& words) {
  EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
}

TEST(NcclError, NamesRankOperationAndReason) {
  const NcclError error(Rank{3}, "combine", "the reason");
  EXPECT_EQ(error.rank(), Rank{3});
  EXPECT_EQ(error.operation(), "combine");
  EXPECT_STREQ(error.what(), "rank 3: combine: NCCL failed: the reason");
}

TEST(NcclError, EveryCodeBreaksTheGroup) {
  for (const ncclResult_t code : {ncclUnhandledCudaError, ncclSystemError, ncclInternalError,
                                  ncclInvalidArgument, ncclInvalidUsage, ncclRemoteError}) {
    NcclGroup::State state;
    state.rank = Rank{5};
    try {
      state.poll(code, "one token");
      ADD_FAILURE() << "taken for a success: " << ncclGetErrorString(code);
    } catch (const NcclError& error) {
      EXPECT_EQ(error.rank(), Rank{5});
      EXPECT_EQ(error.operation(), "one token");
      expect_contains(error, ncclGetErrorString(code));
    }
    EXPECT_TRUE(state.is_broken);
    EXPECT_THROW(state.require_whole("one token"), BrokenGroup);
    EXPECT_THROW(state.wait(nullptr, "one token"), BrokenGroup);
  }
}

TEST(NcclError, SuccessThrowsNothing) {
  NcclGroup::State state;
  state.poll(ncclSuccess, "one token");
  EXPECT_FALSE(state.is_broken);
}

TEST(NcclError, GroupedCallsReportTheFailedCall) {
  NcclGroup::State state;
  const auto fails = [] { return ncclInvalidUsage; };
  EXPECT_THROW(state.grouped("one token", fails), NcclError);
  EXPECT_TRUE(state.is_broken);
}

}  // namespace
}  // namespace kvmesh::test
