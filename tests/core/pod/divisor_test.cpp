#include "core/pod/divisor.hpp"

#include <gtest/gtest.h>

#include <limits>

namespace kvmesh {
namespace {

constexpr int kMost = std::numeric_limits<std::int32_t>::max();

TEST(Divisor, DividesAroundEveryMultiple) {
  for (const int by :
       {1, 2, 3, 5, 7, 8, 9, 15, 31, 32, 33, 641, 65535, 65536, 65537, kMost - 1, kMost}) {
    const Divisor divisor(by);
    for (std::int64_t times : {0, 1, 2, 3, 1000, kMost / by}) {
      for (int off : {-1, 0, 1}) {
        const std::int64_t n = times * by + off;
        if (n < 0 || n > kMost) continue;
        const auto number = static_cast<int>(n);
        EXPECT_EQ(divisor.quotient(number), number / by) << number << " by " << by;
        EXPECT_EQ(divisor.remainder(number, number / by), number % by);
      }
    }
    EXPECT_EQ(divisor.quotient(kMost), kMost / by);
  }
}

TEST(Divisor, TreatsZeroAsOne) { EXPECT_EQ(Divisor(0).quotient(5), 5); }

}  // namespace
}  // namespace kvmesh
