#include "core/checked.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace kvmesh {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

TEST(Checked, Products) {
  EXPECT_EQ(checked_product("x", {}), 1);
  EXPECT_EQ(checked_product("x", {3, 4, 5}), 60);
  EXPECT_EQ(checked_product("x", {kMost, 1}), kMost);
  EXPECT_EQ(checked_product("x", {kMost, kMost, 0}), 0);
  EXPECT_THROW(checked_product("x", {std::int64_t{1} << 32, std::int64_t{1} << 31}),
               InvalidArgument);
  EXPECT_THROW(checked_product("x", {std::int64_t{1} << 32, std::int64_t{1} << 32, 3}),
               InvalidArgument)
      << "wraps around to 0, and back";
  try {
    checked_product("bytes of pools", {kMost, 2});
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("bytes of pools: 9223372036854775807 x 2"),
              std::string::npos);
  }
}

TEST(Checked, Sums) {
  EXPECT_EQ(checked_sum("x", {}), 0);
  EXPECT_EQ(checked_sum("x", {kMost - 1, 1}), kMost);
  EXPECT_THROW(checked_sum("x", {kMost, 1}), InvalidArgument);
  EXPECT_THROW(checked_sum("x", {kMost, kMost, 2}), InvalidArgument) << "wraps around to 0";
}

TEST(Checked, RoundsUp) {
  constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max();
  EXPECT_EQ(rounded_up(0, 8), 0u);
  EXPECT_EQ(rounded_up(1, 8), 8u);
  EXPECT_EQ(rounded_up(8, 8), 8u);
  EXPECT_THROW(rounded_up(kLargest, 8), std::bad_alloc);
}

TEST(Checked, Deadlines) {
  using std::chrono::milliseconds;
  EXPECT_EQ(checked_deadline(milliseconds(0)), milliseconds(0));
  EXPECT_EQ(checked_deadline(milliseconds(5)), milliseconds(5));
  EXPECT_THROW(checked_deadline(milliseconds(-1)), InvalidArgument);
  const auto most = checked_deadline(milliseconds::max());
  EXPECT_GT(std::chrono::steady_clock::now() + most, std::chrono::steady_clock::now());
}

}  // namespace
}  // namespace kvmesh
