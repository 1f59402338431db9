#include "core/threads/back_off.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

using namespace std::chrono_literals;

TEST(WaitUntilDone, PollsUntilDone) {
  int asked = 0;
  EXPECT_TRUE(wait_until_done([&] { return ++asked == 1000; }, 10s));
  EXPECT_EQ(asked, 1000);
  EXPECT_TRUE(wait_until_done([] { return true; }, 0s));
}

TEST(WaitUntilDone, EndsAtTheDeadline) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(wait_until_done([] { return false; }, 20ms));
  const auto waited = std::chrono::steady_clock::now() - start;
  EXPECT_GE(waited, 20ms);
  EXPECT_LT(waited, 5s);
  EXPECT_FALSE(wait_until_done([] { return false; }, 0s));
}

}  // namespace
}  // namespace kvmesh
